// One-vs-rest log-odds of class logits, laid out class by class as they are ranked, and the way back of a gradient.
//
// o_c = z_c - log sum_{k != c} e^{z_k}. The top class is summed apart: with it, what it competes with would be 1 - p and
// round to 0. Rows are worked on in blocks, so that reading row by row and writing class by class both stay in cache.
#pragma once

#include "elementwise.h"

namespace log_odds {

// So many rows that their logits fit into a second cache and each class gets whole cache lines.
inline int64_t rows_of_block(int64_t classes) {
    return std::max<int64_t>(16, std::min<int64_t>(64, (1 << 16) / padded(classes) / 16 * 16));
}

// A row's logits, the top class apart: what all others share.
template <class T> struct Row {
    int64_t top_class;
    T top, lead;   // the largest logit, and how far it lies above the second
    T total;       // the sum of the others' exponentials, relative to the second's
    T decay, all;  // exp(-lead), and the sum of all exponentials relative to the top's

    // `e` gets the exponentials relative to the second's, 0 at the top class and in the padding.
    Row(const T *z, int64_t classes, T *e) {
        const T lowest = -std::numeric_limits<T>::infinity();
        std::copy(z, z + classes, e);
        std::fill(e + classes, e + padded(classes), lowest);
        top = largest_of(e, padded(classes));
        top_class = 0;
        while (top_class < classes - 1 && e[top_class] != top) top_class++;
        e[top_class] = lowest;
        const T second = largest_of(e, padded(classes));
        lead = top - second;
        total = T(exponentials(e, padded(classes), second));
        decay = exp_negative(-lead);
        all = 1 + total * decay;
    }

    // 1 + the sum without one class, relative to the top's exponential; its own rounding may leave less than nothing.
    T without(T e) const { return (total - e < 0 ? T(0) : total - e) * decay; }

    void forward(const T *z, int64_t classes, const T *e, T *odds) const {
        for (int64_t c = 0; c < classes; c++) odds[c] = (z[c] - top) - log1p_positive(without(e[c]));
        odds[top_class] = lead - log_positive(total);
    }

    // d o_c / d z_k is 1 for k = c, else -p_k / (1 - p_c). `grad_odds` is padded with 0; `share` is scratch.
    void backward(int64_t classes, const T *e, T *grad_odds, T *share, T *gradient) const {
        const T of_top = grad_odds[top_class];
        grad_odds[top_class] = 0;
        for (int64_t c = 0; c < padded(classes); c++) share[c] = grad_odds[c] * all / (1 + without(e[c]));
        const T shared = T(sum_of(share, padded(classes))), p = decay / all, by_top = of_top / total;
        for (int64_t c = 0; c < classes; c++) gradient[c] = grad_odds[c] - e[c] * (p * (shared - share[c]) + by_top);
        gradient[top_class] = of_top - shared / all;
    }
};

// Call work(first row, rows, scratch) for each block; the scratch has a row of padded classes for each row, and two more.
template <class T, class Work> int by_block(int64_t rows, int64_t classes, int threads, Work work) {
    return guarded([&] {
        const int64_t height = rows_of_block(classes), width = padded(classes);
        const int64_t of_part = (1 << 18) / (height * width) + 1, blocks = (rows + height - 1) / height;
        parallel(threads, (blocks + of_part - 1) / of_part, [&](int64_t part) {
            Buffer<T> scratch((height + 2) * width);
            const int64_t end = std::min(rows, (part + 1) * of_part * height);
            for (int64_t row = part * of_part * height; row < end; row += height)
                work(row, std::min(height, end - row), scratch.get());
        });
    });
}

template <class T>
int forward(const T *logits, int64_t rows, int64_t classes, int64_t row_stride, T *odds, int threads) {
    const int64_t width = padded(classes);
    return by_block<T>(rows, classes, threads, [=](int64_t row, int64_t n, T *scratch) {
        T *e = scratch + n * width;
        for (int64_t i = 0; i < n; i++) {
            const T *z = logits + (row + i) * row_stride;
            Row<T>(z, classes, e).forward(z, classes, e, scratch + i * width);
        }
        transpose<false>(scratch, width, odds + row, rows, n, classes);
    });
}

template <class T>
int backward(const T *logits, int64_t rows, int64_t classes, int64_t row_stride, const T *grad_odds, T *grad_logits,
             int threads) {
    const int64_t width = padded(classes);
    return by_block<T>(rows, classes, threads, [=](int64_t row, int64_t n, T *scratch) {
        T *e = scratch + n * width, *share = e + width;
        std::fill(scratch, scratch + n * width, T(0));
        transpose<true>(scratch, width, grad_odds + row, rows, n, classes);
        for (int64_t i = 0; i < n; i++) {
            const Row<T> opened(logits + (row + i) * row_stride, classes, e);
            opened.backward(classes, e, scratch + i * width, share, grad_logits + (row + i) * classes);
        }
    });
}

}  // namespace log_odds

// Logits [rows, classes] with classes of at least 2, `row_stride` numbers from row to row; odds are [classes, rows].
#define RARELOSS_LOG_ODDS(suffix, T)                                                                                \
    RARELOSS_API int rareloss_log_odds_##suffix(const T *logits, int64_t rows, int64_t classes, int64_t row_stride, \
                                                T *odds, int threads) {                                             \
        return log_odds::forward<T>(logits, rows, classes, row_stride, odds, threads);                              \
    }                                                                                                               \
    RARELOSS_API int rareloss_log_odds_backward_##suffix(const T *logits, int64_t rows, int64_t classes,            \
                                                         int64_t row_stride, const T *grad_odds, T *grad_logits,    \
                                                         int threads) {                                             \
        return log_odds::backward<T>(logits, rows, classes, row_stride, grad_odds, grad_logits, threads);           \
    }
RARELOSS_LOG_ODDS(f32, float)
RARELOSS_LOG_ODDS(f64, double)
