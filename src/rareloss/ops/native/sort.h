// Radix sort of scores, each with the number of its row: from the last digit up, which keeps ties in their order.
#pragma once

#include "common.h"

template <class T> struct SortKey;
template <> struct SortKey<float> { using Type = uint32_t; };
template <> struct SortKey<double> { using Type = uint64_t; };

// A row in a sort: `key` orders as the score does; below 2^31 rows.
template <class T> struct SortItem {
    typename SortKey<T>::Type key;
    uint32_t row;
};

// -0.0 becomes 0.0, so that they tie; every NaN comes last.
template <class T> inline typename SortKey<T>::Type sort_key(T score) {
    using Key = typename SortKey<T>::Type;
    constexpr Key sign = Key(1) << (8 * sizeof(Key) - 1);
    Key bits;
    score += T(0);
    memcpy(&bits, &score, sizeof bits);
    return score != score ? ~Key(0) : bits & sign ? ~bits : bits | sign;
}
template <class T> inline T score_of(typename SortKey<T>::Type key) {
    using Key = typename SortKey<T>::Type;
    constexpr Key sign = Key(1) << (8 * sizeof(Key) - 1);
    const Key bits = key & sign ? key ^ sign : ~key;
    T score;
    memcpy(&score, &bits, sizeof bits);
    return score;
}

// Rows in ascending order of their scores; `item` stays valid as long as this does.
template <class T> struct Sorted {
    Buffer<SortItem<T>> first, second;
    SortItem<T> *item = nullptr;
    T score(int64_t i) const { return score_of<T>(item[i].key); }
    void drop_spare() { (item == first.get() ? second : first) = Buffer<SortItem<T>>(); }  // half the memory
};

// Sort `scores` [n]; the items' rows are 0 .. n - 1, or rows[i] for the i-th score.
template <class T> Sorted<T> sort_scores(const T *scores, int64_t n, const int32_t *rows = nullptr) {
    Sorted<T> sorted{Buffer<SortItem<T>>(n), Buffer<SortItem<T>>(n)};
    SortItem<T> *from = sorted.first.get(), *to = sorted.second.get();
    // Few rows: small digits, as clearing and summing the counts would cost more than the rows do.
    const int bits = n < 4096 ? 8 : 11, size = 1 << bits, passes = (8 * sizeof(T) + bits - 1) / bits;
    std::vector<uint32_t> counts(int64_t(passes) * size);
    for (int64_t i = 0; i < n; i++) {
        const auto key = sort_key(scores[i]);
        from[i] = {key, rows ? uint32_t(rows[i]) : uint32_t(i)};
        for (int pass = 0; pass < passes; pass++) counts[pass * size + (key >> (pass * bits) & (size - 1))]++;
    }
    for (int pass = 0; pass < passes; pass++) {
        uint32_t *start = counts.data() + int64_t(pass) * size, before = 0;
        const int shift = pass * bits;
        if (n == 0 || start[from[0].key >> shift & (size - 1)] == n) continue;  // all rows share this digit
        for (int digit = 0; digit < size; digit++) before += std::exchange(start[digit], before);
        for (int64_t i = 0; i < n; i++) to[start[from[i].key >> shift & (size - 1)]++] = from[i];
        std::swap(from, to);
    }
    sorted.item = from;
    return sorted;
}

// The scores in ascending order (`sorted` may be null), and which rows they are.
template <class T> int sort_into(const T *values, int64_t n, T *sorted, int64_t *order) {
    return guarded([&] {
        const Sorted<T> by_score = sort_scores(values, n);
        for (int64_t i = 0; i < n; i++) order[i] = by_score.item[i].row;
        if (sorted) for (int64_t i = 0; i < n; i++) sorted[i] = by_score.score(i);
    });
}
