// Sums over all pairs: each pair of a row with many, in vectors; and of two lists, by cells or a walk.
#pragma once

#include "cells.h"

// Rows for `pass_over`, filled up to a whole vector with rows of weight 0.
template <class T> constexpr int64_t padded(int64_t n) { return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>; }
template <class T> void pad(T *score, T *weight, int64_t n) {
    for (int64_t j = n; j < padded<T>(n); j++) score[j] = 0, weight[j] = 0;
}

struct PairSums { double count, slope, moment; };
// Of x_j = (score_j - at) / t, rate = log2(e) / t: sums of w_j sigmoid(x_j), w_j sigmoid'(x_j), w_j sigmoid'(x_j) x_j.
// sigmoid'(x_j) itself, unweighted, goes to `slope` where that is not null. All arrays padded.
template <class T>
PairSums pass_over(const T *score, const T *weight, int64_t n, T at, double rate, T *slope) {
    using V = Vec<T>;
    constexpr int64_t kChunk = 64 * kLanes<T>;  // so few terms in T, then on in double
    const V most = V{} + T(sizeof(T) == 4 ? 126 : 1021), factor = V{} + T(rate);
    PairSums sums = {0, 0, 0};
    for (int64_t begin = 0; begin < n; begin += kChunk) {
        const int64_t end = std::min(begin + kChunk, padded<T>(n));
        V count{}, slopes{}, moment{};
        for (int64_t j = begin; j < end; j += kLanes<T>) {
            const V below = vmin(vmax((at - load(score + j)) * factor, -most), most);  // -x_j
            // From odds = e^-x both tails keep their digits: sigmoid = 1 / (1 + odds), its slope odds / (1 + odds)^2.
            const V odds = exp2(below), sigmoid = T(1) / (T(1) + odds), z = odds * sigmoid * sigmoid;
            const V w = load(weight + j), wz = w * z;
            if (slope) store(slope + j, z);
            count += w * sigmoid;
            slopes += wz;
            moment += wz * below;
        }
        sums.count += hsum(count), sums.slope += hsum(slopes), sums.moment -= hsum(moment);
    }
    sums.moment *= M_LN2;
    return sums;
}
// Adds slopes times a factor; none so small that the product may be denormal, which takes a hundred times as long.
template <class T> void add_scaled(T *to, const T *from, double factor, int64_t n) {
    constexpr T least = sizeof(T) == 4 ? 0x1p-100 : 0x1p-900;
    for (int64_t j = 0; j < n; j += kLanes<T>) {
        const Vec<T> slope = load(from + j);
        store(to + j, load(to + j) + T(factor) * (slope > least ? slope : Vec<T>{}));
    }
}

// Two lists of rows one behind the other, n of the first: give(i, count, slope) is called for each row i of a list
// that is `asked` (bit 0, bit 1), with the other list's sum w sigmoid((other - here) / t) and its slope there.
template <class T, class Give>
void soft_counts_between(const std::vector<T> &score, const std::vector<T> &weight, int64_t n, double temperature,
                         int asked, Give give) {
    const int64_t all = score.size();
    if (n == 0 || n == all) return;
    const auto [low, high] = std::minmax_element(score.begin(), score.end());
    const Points<T> points{score.data(), nullptr, all, double(*low), double(*high), temperature, 1};
    auto sum = [&](auto sums) {
        auto source = [&](int64_t i, auto add) { add(i >= n, double(weight[i])); };
        sums.solve({nullptr, all, 0}, source, {nullptr, all, 0}, [&](int64_t i) { return i < n ? (asked & 1) << 1 : asked >> 1; });
        auto first = [&](int64_t i, double count, double slope) { give(i, count, slope); };
        auto second = [&](int64_t i, double count, double slope) { give(n + i, count, slope); };
        if (asked & 1) sums.take({nullptr, n, 0}, 1, first);
        if (asked & 2) sums.take({nullptr, all - n, n}, 0, second);
    };
    if (cells_pay((points.high - points.low) / temperature / Orders<T>::width, all)) sum(Cells<T>(points));
    else sum(Walk<T>(points));
}
