// Soft counts at given scores: count_a = sum_j w_j sigmoid((s_j - at_a) / t), for several sets of weights.
#pragma once

#include "pairs.h"

template <class T> struct SoftCount {
    const T *scores, *weights;                     // [pools, rows]; [pools, sets, rows] with strides
    int64_t weight_pool_stride, weight_set_stride;
    const T *at;  // [pools, points]; null for the scores themselves, whose slopes leave out a row's pair with itself
    int64_t pools, sets, rows, points;
    double temperature;
    T *count, *slope;  // [pools, sets, points] or null; slope: sum_j w_j sigmoid'((s_j - at) / t)
};

// One set of weights over one pool.
template <class T> void soft_count_set(const SoftCount<T> &c, int64_t pool, int64_t set) {
    const T *score = c.scores + pool * c.rows, *at = c.at ? c.at + pool * c.points : score;
    const T *weight = c.weights + pool * c.weight_pool_stride + set * c.weight_set_stride;
    const int64_t out = (pool * c.sets + set) * c.points;
    std::vector<T> both, w;
    std::vector<double> count(c.points), slope(c.points);
    double whole = 0;
    for (int64_t j = 0; j < c.rows; j++)
        if (weight[j] != 0) both.push_back(score[j]), w.push_back(weight[j]), whole += weight[j];
    const int64_t n = both.size();
    const bool finite =
        std::isfinite(whole) && std::all_of(both.begin(), both.end(), [](T x) { return std::isfinite(x); });
    std::copy_if(at, at + c.points, std::back_inserter(both), [](T x) { return std::isfinite(x); });
    w.resize(both.size());
    const double t = std::max(c.temperature, 1e-300);
    if (finite) soft_counts_between(both, w, n, t, 2, [&](int64_t i, double here, double rise) {
        count[i - n] = here, slope[i - n] = rise;
    });
    int64_t m = 0;
    for (int64_t a = 0; a < c.points; a++) {
        double one = at[a] != at[a] ? NAN : at[a] > 0 ? 0 : whole, rise = at[a] != at[a] ? NAN : 0;  // beyond all rows
        if (!finite) one = rise = NAN;
        else if (std::isfinite(at[a])) one = count[m], rise = slope[m++];
        if (!c.at && std::isfinite(at[a])) rise -= weight[a] / 4.0;
        if (c.count) c.count[out + a] = narrow<T>(one);
        if (c.slope) c.slope[out + a] = narrow<T>(rise);
    }
}
template <class T> int soft_count(const SoftCount<T> &c, int threads) {
    return guarded([&] {
        const bool large = c.pools * c.sets * c.rows > 1 << 18;
        parallel(large ? threads : 1, c.pools * c.sets, [&](int64_t i) { soft_count_set(c, i / c.sets, i % c.sets); });
    });
}
