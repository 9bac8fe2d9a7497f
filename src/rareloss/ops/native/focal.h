// Focal losses (Lin et al., ICCV 2017): value and derivative in one pass over chunks that stay in a core's first cache.
//
// With q the probability of not being the target and l the log-likelihood, the loss is -a q^gamma l. No power of a
// probability is divided by q, so every finite logit and every gamma has a finite derivative.
#pragma once

#include "elementwise.h"

namespace focal {

constexpr int64_t kChunk = 496;            // elements worked on at once; no power of 2, or arrays would share cache sets
constexpr int64_t kElementsOfPart = 1 << 18;  // what a thread takes at a time; fixed, so that sums depend on no thread
constexpr int64_t kScratch = 1 << 15;      // exponentials of so many logits are kept in cache
constexpr int64_t kRows = 240;             // rows of logits worked on at once

struct Sums {
    double loss = 0, weight = 0, positive = 0;
    int64_t bad = 0;
};

inline void add_up(const std::vector<Sums> &parts, double *sums, int64_t *bad) {
    sums[0] = sums[1] = sums[2] = 0, *bad = 0;
    for (const Sums &part : parts) {
        sums[0] += part.loss, sums[1] += part.weight, sums[2] += part.positive;
        *bad += part.bad;
    }
}

// q^gamma of n probabilities: products and a root where 2 gamma is a small whole number, else through logarithms.
template <class T> void power(const T *q, T *out, int64_t n, double gamma) {
    const double halves = 2 * gamma;
    if (halves == std::floor(halves) && halves <= 8) {
        const bool root = std::fmod(halves, 2) == 1;
        for (int64_t i = 0; i < n; i++) out[i] = root ? std::sqrt(q[i]) : T(1);
        for (int whole = 0; whole < int(gamma); whole++)
            for (int64_t i = 0; i < n; i++) out[i] *= q[i];
        return;
    }
    const T exponent = T(std::min(gamma, 1e30)), smallest = std::numeric_limits<T>::min();
    for (int64_t i = 0; i < n; i++) {
        const T raised = exp_negative(exponent * log_positive(q[i]));
        out[i] = q[i] < smallest ? T(0) : raised;
    }
}

// ---------------------------------------------------------------- sigmoid

// A chunk's rows, each padded with elements of weight 0.
template <class T> struct Chunk {
    alignas(64) T label[kChunk], weight[kChunk], logit[kChunk], alpha_positive[kChunk], alpha_negative[kChunk];
    alignas(64) T nll[kChunk], q[kChunk], p[kChunk], focus[kChunk], loss[kChunk];
};

// Labels as 0 or 1, NaN where they are neither, and weight 0 where they are ignored; returns how many are neither.
template <class T, class Target, class Absent>
int64_t read_labels(const Target *targets, int64_t n, Absent absent, Chunk<T> &chunk) {
    int32_t bad = 0;
    for (int64_t i = 0; i < n; i++) {
        const Target y = targets[i];
        const bool ignored = absent(y), zero = y == Target(0), one = y == Target(1);
        chunk.label[i] = (ignored | zero) ? T(0) : one ? T(1) : std::numeric_limits<T>::quiet_NaN();
        chunk.weight[i] = ignored ? T(0) : chunk.weight[i];
        bad += !(ignored | zero | one);
    }
    return bad;
}

template <class T, class Target>
int64_t read_targets(const void *targets, int64_t start, int64_t n, const double *ignore_index, Chunk<T> &chunk) {
    const Target *from = static_cast<const Target *>(targets) + start;
    if (ignore_index && *ignore_index != *ignore_index)
        return read_labels(from, n, [](Target y) { return y != y; }, chunk);
    const double limit = double(std::numeric_limits<Target>::max());
    if (ignore_index && *ignore_index < limit && *ignore_index >= std::numeric_limits<Target>::lowest()) {
        const Target ignored = Target(*ignore_index);
        return read_labels(from, n, [ignored](Target y) { return y == ignored; }, chunk);
    }
    return read_labels(from, n, [](Target) { return false; }, chunk);
}

template <class T> struct Sigmoid {
    const T *logits;
    const void *targets;
    int target_type;
    const T *weight, *alpha;
    int64_t alpha_period;
    double gamma, ignore_index;
    bool has_ignore;
    double slope_scale;
    T *loss, *slope;

    int64_t read(int64_t start, int64_t n, Chunk<T> &chunk) const {
        std::fill(chunk.weight, chunk.weight + n, T(1));
        if (weight) std::copy(weight + start, weight + start + n, chunk.weight);
        const auto read_as = target_type == 0   ? read_targets<T, uint8_t>
                             : target_type == 1 ? read_targets<T, int64_t>
                             : target_type == 2 ? read_targets<T, float>
                             : target_type == 3 ? read_targets<T, double>
                                                : read_targets<T, int32_t>;
        const int64_t bad = read_as(targets, start, n, has_ignore ? &ignore_index : nullptr, chunk);
        for (int64_t i = 0; i < n; i++) {
            const T z = logits[start + i];
            chunk.logit[i] = chunk.weight[i] > 0 ? z : T(0);
        }
        const int64_t end = padded(n);
        for (T *rest : {chunk.label, chunk.weight, chunk.logit}) std::fill(rest + n, rest + end, T(0));
        return bad;
    }

    void read_alpha(int64_t start, int64_t n, Chunk<T> &chunk) const {
        for (int64_t i = 0, at = start % alpha_period; i < n; i++) {
            chunk.alpha_positive[i] = alpha ? alpha[at] : T(1);
            chunk.alpha_negative[i] = alpha ? 1 - alpha[at] : T(1);
            if (++at == alpha_period) at = 0;
        }
    }

    void part(int64_t start, int64_t end, Sums &sums) const {
        Chunk<T> chunk;
        std::fill(chunk.alpha_positive, chunk.alpha_positive + kChunk, T(0));
        std::fill(chunk.alpha_negative, chunk.alpha_negative + kChunk, T(0));
        for (int64_t at = start; at < end; at += kChunk) {
            const int64_t n = std::min(kChunk, end - at);
            sums.bad += read(at, n, chunk);
            if (alpha_period > 1 || at == start) read_alpha(at, alpha_period > 1 ? n : kChunk, chunk);
            compute(chunk, padded(n));
            if (loss) std::copy(chunk.loss, chunk.loss + n, loss + at);
            if (slope) std::copy(chunk.focus, chunk.focus + n, slope + at);
            sums.loss += sum_of(chunk.loss, padded(n));
            sums.weight += sum_of(chunk.weight, padded(n));
            sums.positive += sum_of(chunk.label, padded(n));
        }
    }

    // The weighted loss; in place of the focus, its derivative; in place of the label, the positive weight.
    void compute(Chunk<T> &chunk, int64_t n) const {
        for (int64_t i = 0; i < n; i++) {
            const T x = (1 - 2 * chunk.label[i]) * chunk.logit[i];  // the log-odds of the wrong label
            const T odds = exp_negative(x > 0 ? -x : x);
            chunk.nll[i] = (x > 0 ? x : T(0)) + log1p_positive(odds) + (x - x);  // NaN for an infinite logit
            const T larger = 1 / (1 + odds), smaller = odds * larger;
            chunk.q[i] = x > 0 ? larger : smaller;
            chunk.p[i] = x > 0 ? smaller : larger;
        }
        power(chunk.q, chunk.focus, n, gamma);
        const T gamma_here = T(std::min(gamma, 1e30)), scale = T(slope_scale);
        for (int64_t i = 0; i < n; i++) {
            const T y = chunk.label[i], nll = chunk.nll[i];
            const T a = chunk.weight[i] * (y > 0 ? chunk.alpha_positive[i] : chunk.alpha_negative[i]) * chunk.focus[i];
            chunk.loss[i] = a * nll;
            chunk.focus[i] = a * (chunk.q[i] + gamma_here * chunk.p[i] * nll) * (1 - 2 * y) * scale;
            chunk.label[i] = y > 0 ? chunk.weight[i] : T(0);
        }
    }
};

template <class T> int sigmoid(const Sigmoid<T> &pass, int64_t n, double *sums, int64_t *bad, int threads) {
    return guarded([&] {
        const int64_t count = (n + kElementsOfPart - 1) / kElementsOfPart;
        std::vector<Sums> parts(count);
        parallel(threads, count, [&](int64_t i) {
            pass.part(i * kElementsOfPart, std::min(n, (i + 1) * kElementsOfPart), parts[i]);
        });
        add_up(parts, sums, bad);
    });
}

// ---------------------------------------------------------------- softmax

// What the loss and the derivatives of some rows need, relative to each row's largest logit.
template <class T> struct Rows {
    alignas(64) T target[kRows], mean[kRows], rest[kRows];  // the target's logit, the mean, the others' exponentials
    alignas(64) T weight[kRows], a[kRows], loss[kRows];     // a: the weight times alpha
    alignas(64) T factor[kRows], shift[kRows], at_target[kRows];  // slopes: exponential * factor - shift; the target's
    alignas(64) T q[kRows], focus[kRows];
    int64_t label[kRows];

    void compute(int64_t n, int64_t classes, double gamma, double smoothing, double slope_scale) {
        const T s = T(smoothing), lowest = T(-1e30), least = T(1e-30), gamma_here = T(std::min(gamma, 1e30));
        for (int64_t i = 0; i < n; i++) q[i] = rest[i] / (rest[i] + exp_negative(target[i]));
        power(q, focus, n, gamma);
        for (int64_t i = 0; i < n; i++) {
            const T of_target = exp_negative(target[i]), total = rest[i] + of_target;
            // rest + of_target - 1 has all its digits where the target is the largest, and that is where it is small.
            const T log_total = log1p_positive(rest[i] + (of_target - 1));
            const T log_p = target[i] - log_total;
            const T likelihood = s > 0 ? (1 - s) * log_p + s * (mean[i] - log_total) : log_p;
            const T ratio = likelihood / (q[i] < least ? least : q[i]), steep = ratio < lowest ? lowest : ratio;
            const T p = of_target / total, turn = gamma_here * p * steep, scale = focus[i] * T(slope_scale) * a[i];
            loss[i] = focus[i] * (0 - likelihood) * a[i];  // no -0.0
            factor[i] = scale * (1 - turn) / total;
            shift[i] = scale * s / T(classes);
            at_target[i] = scale * (s * p - (1 - s) * q[i] + q[i] * turn) - shift[i];
        }
    }
};

template <class T> struct Softmax {
    const T *logits;
    int64_t outer, classes, inner;  // the logits are [outer, classes, inner]
    const int64_t *targets;         // [outer, inner], as are the weight and the loss
    const T *weight, *alpha;
    double gamma, smoothing;
    int64_t ignore_index, background;
    double slope_scale;
    T *loss, *slope;

    int64_t together() const { return std::max<int64_t>(1, std::min<int64_t>(kRows, kScratch / padded(classes))); }
    int64_t blocks_of_row() const { return inner == 1 ? 1 : (inner + together() - 1) / together(); }
    int64_t blocks() const { return inner == 1 ? (outer + together() - 1) / together() : outer * blocks_of_row(); }

    // Rows that are worked on at once have neighbouring targets; the scratch has them one after the other.
    void block(int64_t number, Rows<T> &rows, T *scratch, Sums &sums) const {
        const int64_t line = inner == 1 ? 0 : number / blocks_of_row(), width = padded(classes);
        const int64_t start = (inner == 1 ? number : number % blocks_of_row()) * together();
        const int64_t n = std::min(together(), (inner == 1 ? outer : inner) - start);
        const int64_t logit = inner == 1 ? start * classes : line * classes * inner + start;
        read(line * inner + start, n, rows, sums);
        if (inner > 1) transpose<true>(scratch, width, logits + logit, inner, n, classes);
        for (int64_t i = 0; i < n; i++)
            open(inner > 1 ? scratch + i * width : logits + logit + i * classes, i, rows, scratch + i * width);
        rows.compute(n, classes, gamma, smoothing, slope_scale);
        for (int64_t i = 0; i < n; i++) sums.loss += rows.loss[i];
        if (loss) std::copy(rows.loss, rows.loss + n, loss + line * inner + start);
        for (int64_t i = 0; slope && i < n; i++)
            close(scratch + i * width, i, rows, inner > 1 ? scratch + i * width : slope + logit + i * classes);
        if (slope && inner > 1) transpose<false>(scratch, width, slope + logit, inner, n, classes);
    }

    void read(int64_t start, int64_t n, Rows<T> &rows, Sums &sums) const {
        for (int64_t i = 0; i < n; i++) {
            const int64_t y = targets[start + i];
            const bool ignored = y == ignore_index, known = y >= 0 && y < classes;
            rows.label[i] = ignored || !known ? 0 : y;
            rows.weight[i] = ignored ? T(0) : weight ? weight[start + i] : T(1);
            rows.a[i] = known || ignored ? rows.weight[i] * (alpha ? alpha[rows.label[i]] : T(1))
                                         : std::numeric_limits<T>::quiet_NaN();
            sums.weight += rows.weight[i];
            sums.positive += y == background ? T(0) : rows.weight[i];
            sums.bad += !known && !ignored;
        }
    }

    // The exponentials of a row's logits, 0 at the target, and what `rows` holds of it; e may be z.
    void open(const T *z, int64_t i, Rows<T> &rows, T *e) const {
        const T lowest = -std::numeric_limits<T>::infinity();
        const int64_t width = padded(classes), y = rows.label[i];
        if (!(rows.weight[i] > 0)) std::fill(e, e + classes, T(0));
        else if (e != z) std::copy(z, z + classes, e);
        std::fill(e + classes, e + width, lowest);
        const T top = largest_of(e, width);
        rows.target[i] = e[y] - top;
        double sum = 0;
        for (int64_t k = 0; smoothing > 0 && k < classes; k++) sum += e[k] - top;
        rows.mean[i] = T(sum / classes);
        e[y] = lowest;
        rows.rest[i] = T(exponentials(e, width, top));
    }

    void close(const T *e, int64_t i, const Rows<T> &rows, T *out) const {
        const T factor = rows.factor[i], shift = rows.shift[i];
        for (int64_t k = 0; k < classes; k++) out[k] = e[k] * factor - shift;
        out[rows.label[i]] = rows.at_target[i];
    }
};

template <class T> int softmax(const Softmax<T> &pass, double *sums, int64_t *bad, int threads) {
    return guarded([&] {
        const int64_t blocks = pass.blocks(), width = pass.together() * padded(pass.classes);
        const int64_t of_part = std::max<int64_t>(1, kElementsOfPart / width), count = (blocks + of_part - 1) / of_part;
        std::vector<Sums> parts(count);
        parallel(threads, count, [&](int64_t part) {
            Rows<T> rows = {};
            Buffer<T> scratch(width);
            for (int64_t number = part * of_part; number < std::min(blocks, (part + 1) * of_part); number++)
                pass.block(number, rows, scratch.get(), parts[part]);
        });
        add_up(parts, sums, bad);
    });
}

}  // namespace focal

// Targets are 0, 1 or `ignore_index` (NaN is one for floats), of type 0 uint8 or bool, 1 int64, 2 float, 3 double,
// 4 int32; alpha is null or holds `alpha_period` weights of positives, for one element after the other. `sums` are the
// weighted loss, the weight and the positives' weight; `slope` is the loss's derivative times `slope_scale`. Loss and
// slope may be null. A label that is none of these makes its loss NaN and is counted in `bad`.
#define RARELOSS_SIGMOID_FOCAL(name, T)                                                                             \
    RARELOSS_API int name(const T *logits, const void *targets, int target_type, const T *weight, int64_t n,        \
                          const T *alpha, int64_t alpha_period, double gamma, double ignore_index, int has_ignore,  \
                          double slope_scale, double *sums, T *loss, T *slope, int64_t *bad, int threads) {         \
        return focal::sigmoid<T>({logits, targets, target_type, weight, alpha, alpha_period, gamma, ignore_index,   \
                                  has_ignore != 0, slope_scale, loss, slope}, n, sums, bad, threads);               \
    }
RARELOSS_SIGMOID_FOCAL(rareloss_sigmoid_focal_f32, float)
RARELOSS_SIGMOID_FOCAL(rareloss_sigmoid_focal_f64, double)

// The same for class indices: logits and slope are [outer, classes, inner], targets, weight and loss [outer, inner],
// alpha is null or a weight for each class. A positive is what is not of the background class.
#define RARELOSS_SOFTMAX_FOCAL(name, T)                                                                             \
    RARELOSS_API int name(const T *logits, int64_t outer, int64_t classes, int64_t inner, const int64_t *targets,   \
                          const T *weight, const T *alpha, double gamma, double smoothing, int64_t ignore_index,    \
                          int64_t background, double slope_scale, double *sums, T *loss, T *slope, int64_t *bad,    \
                          int threads) {                                                                            \
        return focal::softmax<T>({logits, outer, classes, inner, targets, weight, alpha, gamma, smoothing,          \
                                  ignore_index, background, slope_scale, loss, slope}, sums, bad, threads);         \
    }
RARELOSS_SOFTMAX_FOCAL(rareloss_softmax_focal_f32, float)
RARELOSS_SOFTMAX_FOCAL(rareloss_softmax_focal_f64, double)
