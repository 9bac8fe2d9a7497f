// Statistics of a pool, and soft counts of all its rows in linear time.
#pragma once

#include "sort.h"
#include "vectors.h"

// One class of a pool.
template <class T> struct Rows {
    const T *score;
    const uint8_t *positive;  // may be null where nobody asks
    const T *weight;          // null: all 1
    const uint8_t *iid;       // null: all
    int64_t count, live;      // a gradient is wanted of the first `live`
};
template <class T> Rows<T> rows_of(const Pool &pool, int64_t c) {
    return {static_cast<const T *>(pool.scores) + c * pool.score_stride,
            pool.positive + c * pool.positive_stride,
            pool.weight ? static_cast<const T *>(pool.weight) + c * pool.weight_stride : nullptr,
            pool.iid ? pool.iid + c * pool.iid_stride : nullptr,
            pool.rows,
            pool.live};
}

struct Statistics {
    double weight, iid_weight;       // sums over the rows present (weight above 0), and over the iid ones among them
    double mean, std;                // of the iid rows, weighted; std is 1 where all are equal
    double low, high;                // of the rows present; low > high where there are none
    double weight_low, weight_high;  // the lightest and the heaviest row present
    bool finite;                     // whether every row present has a finite score
};
// One pass over the rows as a rule; rows of weight 0 are not looked at, whatever score they hold.
template <class T> Statistics statistics(const Rows<T> &rows, int threads);
