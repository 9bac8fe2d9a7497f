// Sums over all pairs: each pair of a row with many, in vectors; and of two lists, by cells or a walk.
#pragma once

#include "cells.h"

// ---------------------------------------------------------------- each pair

// Rows for `pass_over`, filled up to a whole vector with rows of weight 0.
template <class T> constexpr int64_t padded(int64_t n) { return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>; }
template <class T> void pad(T *score, T *weight, int64_t n) {
    for (int64_t j = n; j < padded<T>(n); j++) score[j] = 0, weight[j] = 0;
}
// Whether a pair's distance times 1 / temperature stays a number.
template <class T> bool pairs_in_range(double temperature) {
    return sizeof(T) == 8 || (temperature > 1e-30 && temperature < 1e30);
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
            const V odds = exp2(below), share = T(1) / (T(1) + odds), z = odds * share * share;
            const V w = load(weight + j), wz = w * z;
            if (slope) store(slope + j, z);
            count += w * share;
            slopes += wz;
            moment += wz * below;
        }
        sums.count += hsum(count), sums.slope += hsum(slopes), sums.moment -= hsum(moment);
    }
    sums.moment *= M_LN2;
    return sums;
}
template <class T> void add_scaled(T *to, const T *from, double factor, int64_t n) {
    for (int64_t j = 0; j < n; j += kLanes<T>) store(to + j, load(to + j) + T(factor) * load(from + j));
}
// A power of two that brings the heaviest weight to about 1, so that products stay in range.
inline double weight_scale(double heaviest) { return heaviest > 0 ? std::ldexp(1.0, -std::ilogb(heaviest)) : 1; }

// ---------------------------------------------------------------- two lists

// Rows that act on the other list's rows, and what these in turn do to them. Scores finite; nothing padded.
template <class T> struct List {
    const T *score, *weight;  // weight null: acts on nobody
    int64_t n;
    double *count, *slope;  // at each row here, sum w sigmoid((other - here) / t), and its slope; or null
};

template <class T> void lists_by_cells(const List<T> *lists, double low, double high, double temperature) {
    const Line line = line_of(low, high, temperature);
    Buffer<Nodes<T>> moments(2 * line.cells), counts(2 * line.cells);
    std::vector<uint8_t> filled(line.cells), wanted(line.cells);
    std::fill_n(moments.get(), 2 * line.cells, Nodes<T>{});
    double offset;
    for (int l = 0; l < 2; l++)
        for (int64_t i = 0; i < lists[l].n; i++) {
            const int32_t cell = line.place(lists[l].score[i], &offset);
            if (lists[l].weight) moments[2 * cell + l] += powers<Orders<T>::nodes>(offset) * lists[l].weight[i];
            filled[cell] |= lists[l].weight != nullptr, wanted[cell] |= lists[l].slope != nullptr;
        }
    soft_counts_of_cells<T>(moments.get(), counts.get(), filled.data(), wanted.data(), line.cells);
    for (int l = 0; l < 2; l++)
        for (int64_t i = 0; i < lists[l].n && lists[l].slope; i++) {
            const int32_t cell = line.place(lists[l].score[i], &offset);
            const Nodes<T> &count = counts[2 * cell + (1 - l)];
            if (lists[l].count) lists[l].count[i] = count_at<T>(count, offset);
            lists[l].slope[i] = slope_at<T>(count, offset);
        }
}

template <class T> void lists_by_walk(const List<T> *lists, double temperature) {
    const int64_t n = lists[0].n, all = n + lists[1].n;
    Buffer<T> score(all);
    std::copy_n(lists[0].score, n, score.get());
    std::copy_n(lists[1].score, all - n, score.get() + n);
    const Sorted<T> sorted = sort_scores(score.get(), all);
    const Buffer<double> decay = decays_of(sorted, all, temperature);
    auto at = [&](int64_t i) { return int64_t(sorted.item[i].row); };
    auto source = [&](int64_t i, double *w) {
        const int l = at(i) >= n;
        w[1 - l] = 0;
        w[l] = lists[l].weight ? lists[l].weight[at(i) - l * n] : 0;
    };
    auto wanted = [&](int64_t i) { return lists[at(i) >= n].slope ? (at(i) >= n ? 1 : 2) : 0; };
    auto take = [&](int64_t i, int set, bool, double count, double slope) {
        const List<T> &list = lists[1 - set];
        const int64_t row = at(i) - (1 - set) * n;
        if (list.count) list.count[row] += count;
        list.slope[row] += slope;
    };
    walk<T>(decay.get(), all, source, wanted, take);
}

// The soft counts and slopes that two lists ask of one another. `slope` is given wherever `count` is.
template <class T> void soft_counts_between(const List<T> *lists, double temperature) {
    double low = INFINITY, high = -INFINITY;
    for (const List<T> *list : {lists, lists + 1}) {
        if (list->count) std::fill_n(list->count, list->n, 0.0);
        if (list->slope) std::fill_n(list->slope, list->n, 0.0);
        for (int64_t i = 0; i < list->n; i++)
            low = std::min(low, double(list->score[i])), high = std::max(high, double(list->score[i]));
    }
    if (lists[0].n == 0 || lists[1].n == 0) return;
    if (cells_pay((high - low) / temperature, lists[0].n + lists[1].n)) lists_by_cells(lists, low, high, temperature);
    else lists_by_walk(lists, temperature);
}

// sum_ij u_i v_j sigmoid((a_i - b_j) / temperature) of two weighted lists, returned. Slopes, in units of 1 /
// temperature (multiply by 1 / temperature and the row's own weight for a gradient): a_slope_i = sum_j v_j sigmoid'(.),
// b_slope_j = sum_i u_i sigmoid'(.), both positive, both or neither null. Scores are finite; weights above 0 or 0, any
// scale. No padding or alignment is asked of the arrays.
template <class T>
double all_pairs(const T *a, const T *u, int64_t n, const T *b, const T *v, int64_t m, double temperature,
                 double *a_slope, double *b_slope) {
    Buffer<double> count(m), own(b_slope ? 0 : m);
    const List<T> lists[2] = {{a, u, n, nullptr, a_slope}, {b, v, m, count.get(), b_slope ? b_slope : own.get()}};
    soft_counts_between(lists, temperature);
    double total = 0;
    for (int64_t j = 0; j < m; j++) total += v[j] * count[j];
    return total;
}
