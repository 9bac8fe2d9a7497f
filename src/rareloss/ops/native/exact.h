// Exact average precision, value only: a tied group counts whole, as in scikit-learn.
//
// Only positives need a rank, so only they are sorted. A negative is looked up among them through a table of equal
// steps between the lowest and the highest, and adds its weight to the highest positive that it does not fall below.
#pragma once

#include "sort.h"

namespace exact {

// The positives' distinct scores, upwards, with the weight of positives at each.
template <class T> struct Levels {
    using Key = typename SortKey<T>::Type;
    std::vector<T> score;
    std::vector<double> weight;
    std::vector<int32_t> start;  // of each step of the table, the first level that is not below it
    int64_t steps;
    bool by_bits = false;  // steps are equal in the scores' bits, that is by order of magnitude, not in the scores
    double steps_per_half = 0;
    int shift = 0;

    Levels(const T *scores, const T *weights, int64_t n) {
        const Sorted<T> sorted = sort_scores(scores, n);
        for (int64_t i = 0; i < n; i++) {
            if (i == 0 || sorted.score(i) > score.back()) score.push_back(sorted.score(i)), weight.push_back(0);
            weight.back() += weights[sorted.item[i].row];
        }
        steps = 4 * int64_t(score.size());
        const double half_range = double(score.back()) / 2 - double(score[0]) / 2;
        steps_per_half = std::min(1e300, double(steps) / std::max(half_range, 1e-300));
        while ((uint64_t(sort_key(score.back()) - sort_key(score[0])) >> shift) >= uint64_t(steps)) shift++;
        const double even = crowding();
        if (even <= double(steps)) return;  // four at a level's step on average
        by_bits = true;
        if (crowding() > even) by_bits = false, crowding();
    }

    // Make the table; returns the sum of squares of how many levels share a step.
    double crowding() {
        start.assign(steps + 1, 0);
        for (const T level : score) start[step(level) + 1]++;
        double sum = 0;
        for (int64_t i = 1; i <= steps; i++) sum += double(start[i]) * start[i], start[i] += start[i - 1];
        return sum;
    }

    // Rising with the score, which lies between the lowest and the highest level.
    int64_t step(T x) const {
        if (by_bits) return int64_t((sort_key(x) - sort_key(score[0])) >> shift);
        return std::min(steps - 1, int64_t((double(x) / 2 - double(score[0]) / 2) * steps_per_half));
    }

    // The highest level that is not above x; x is not below the lowest.
    int64_t find(T x) const {
        if (x >= score.back()) return int64_t(score.size()) - 1;
        const int64_t here = step(x);
        const T *first = score.data() + start[here], *end = score.data() + start[here + 1];
        if (end - first > 8) return std::upper_bound(first, end, x) - score.data() - 1;
        while (first < end && *first <= x) first++;
        return first - score.data() - 1;
    }
};

// Add the weight of the negatives among some rows to their levels, and that of all negatives; NaN if one is not finite.
template <class T>
double add_negatives(const T *score, const uint8_t *positive, const T *weight, int64_t begin, int64_t end,
                     const Levels<T> &levels, double *negatives) {
    double whole = 0;
    for (int64_t i = begin; i < end; i++) {
        const T w = weight ? weight[i] : T(1);
        if (positive[i] || !(w > 0)) continue;
        whole += w + (score[i] - score[i]);
        if (score[i] >= levels.score[0]) negatives[levels.find(score[i])] += w;
    }
    return whole;
}

template <class T>
double average_precision(const T *score, const uint8_t *positive, const T *weight, int64_t rows, int threads) {
    const double undefined = std::numeric_limits<double>::quiet_NaN();
    int64_t most = 0, n = 0;
    for (int64_t i = 0; i < rows; i++) most += positive[i] != 0;
    Buffer<T> scores(most), weights(most);
    double whole = 0;
    for (int64_t i = 0; n < most && i < rows; i++) {
        if (!positive[i] || (weight && !(weight[i] > 0))) continue;
        scores[n] = score[i], weights[n] = weight ? weight[i] : T(1);
        whole += weights[n] + (score[i] - score[i]);
        n++;
    }
    if (n == 0 || !(whole > 0)) return undefined;
    const Levels<T> levels(scores.get(), weights.get(), n);
    const int64_t size = levels.score.size(), parts = std::max<int64_t>(1, std::min<int64_t>(threads, rows >> 18));
    std::vector<double> negatives(size * parts), of_part(parts);
    parallel(threads, parts, [&](int64_t part) {
        of_part[part] = add_negatives(score, positive, weight, rows * part / parts, rows * (part + 1) / parts, levels,
                                      negatives.data() + size * part);
    });
    double all_negatives = 0, hits = 0, misses = 0, sum = 0;
    for (const double some : of_part) all_negatives += some;
    if (!(all_negatives > 0)) return undefined;
    for (int64_t level = size - 1; level >= 0; level--) {
        hits += levels.weight[level];
        for (int64_t part = 0; part < parts; part++) misses += negatives[size * part + level];
        sum += levels.weight[level] * (hits / (hits + misses));
    }
    return sum / whole;
}

template <class T> int average_precision(const Pool *pool) {
    return guarded([&] {
        for (int64_t c = 0; c < pool->classes; c++) {
            const T *weight = static_cast<const T *>(pool->weight);
            pool->value[c] = average_precision(static_cast<const T *>(pool->scores) + c * pool->score_stride,
                                               pool->positive + c * pool->positive_stride,
                                               weight ? weight + c * pool->weight_stride : nullptr, pool->rows,
                                               pool->threads);
        }
    });
}

}  // namespace exact

RARELOSS_API int rareloss_average_precision_exact_f32(const Pool *pool) {
    return exact::average_precision<float>(pool);
}
RARELOSS_API int rareloss_average_precision_exact_f64(const Pool *pool) {
    return exact::average_precision<double>(pool);
}
