// A class of a pool: its rows, their statistics, and what every metric of it does alike.
#pragma once

#include "common.h"
#include "vectors.h"

constexpr int kBlock = 8;  // rows taken together where their scores are wanted as doubles
using Block = Doubles<kBlock>;

// The nearest number of the scores' type: a slope may overflow where the temperature is tiny, its sign still teaches.
template <class T> inline T narrow(double x) {
    constexpr double most = std::numeric_limits<T>::max();
    return T(x > most ? most : x < -most ? -most : x);  // NaN stays
}
// A power of two that brings a number to about 1, so that products stay in range.
inline double unit_of(double x) { return x > 0 ? std::ldexp(1.0, std::min(1000, -std::ilogb(x))) : 1; }

// One class of a pool.
template <class T> struct Rows {
    const T *score;
    const uint8_t *positive;
    const T *weight;     // null: all 1
    const uint8_t *iid;  // null: all
    int64_t count, live;  // a gradient is wanted of the first `live`

    double weight_of(int64_t j) const { return weight ? double(weight[j]) : 1.0; }
};

struct Statistics {
    double weight, iid_weight;       // sums over the rows present (weight above 0), and over the iid ones among them
    double mean, std;                // of the iid rows, weighted; std is 1 where all are equal
    double low, high;                // of the rows present; low > high where there are none
    double weight_low, weight_high;  // the lightest and the heaviest row present
    bool finite;                     // whether every row present has a finite score
    bool varies;                     // whether the iid rows' scores differ
};

// Over some rows: sums of weight, iid weight, w d, w d^2 with d = score * scale - anchor, and s - s, NaN if one is not
// finite; the largest of -score, score, -weight, weight. Absent rows are given the score of `some_row`, which is there.
struct PartialSums {
    double sum[5] = {}, most[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    void add(const PartialSums &other) {
        for (int k = 0; k < 5; k++) sum[k] += other.sum[k];
        for (int k = 0; k < 4; k++) most[k] = std::max(most[k], other.most[k]);
    }
};
template <class T>
PartialSums partial_sums(const Rows<T> &rows, int64_t begin, int64_t end, int64_t some_row, double anchor,
                         double scale) {
    using V = Vec<double>;
    constexpr int N = kBlock;
    const V instead = V{} + double(rows.score[some_row]), nothing = V{} - INFINITY;
    Block sum[5] = {}, most[4];
    for (Block &one : most) one = Block{} - INFINITY;
    auto add = [&](const Block &score, const Block &weight, const Block &iid, auto weighted) {
        RARELOSS_EACH {
            V s = score.v[i];
            if (weighted) {
                const V w = weight.v[i];
                const auto present = w > 0.0;
                s = present ? s : instead;
                most[2].v[i] = vmax(present ? -w : nothing, most[2].v[i]), most[3].v[i] = vmax(w, most[3].v[i]);
                sum[0].v[i] += w, sum[1].v[i] += w * iid.v[i];
            }
            s *= scale;
            most[0].v[i] = vmax(-s, most[0].v[i]), most[1].v[i] = vmax(s, most[1].v[i]);
            const V d = s - anchor, ud = weighted ? weight.v[i] * iid.v[i] * d : d;
            sum[2].v[i] += ud, sum[3].v[i] += ud * d, sum[4].v[i] += s - s;
        }
    };
    int64_t j = begin;
    const Block one = Block{} + 1.0;
    const bool weighted = rows.weight || rows.iid;
    for (; j + N <= end && !weighted; j += N) add(wide<N>(rows.score + j), one, one, std::false_type());
    const double plain = double(j - begin);
    for (; j + N <= end; j += N)
        add(wide<N>(rows.score + j), rows.weight ? wide<N>(rows.weight + j) : one,
            rows.iid ? wide<N>(rows.iid + j) : one, std::true_type());
    if (j < end) {  // the last rows, filled up with rows of weight 0
        Block score{}, weight{}, iid{};
        for (int64_t r = j; r < end; r++)
            score[r - j] = rows.score[r], weight[r - j] = rows.weight_of(r), iid[r - j] = !rows.iid || rows.iid[r];
        add(score, weight, iid, std::true_type());
    }
    PartialSums sums;
    for (int k = 0; k < 5; k++) sums.sum[k] = hsum(sum[k]);
    for (int k = 0; k < 4; k++) for (int i = 0; i < N; i++) sums.most[k] = std::max(sums.most[k], most[k][i]);
    sums.sum[0] += plain, sums.sum[1] += plain;
    if (plain > 0) sums.most[2] = std::max(sums.most[2], -1.0), sums.most[3] = std::max(sums.most[3], 1.0);
    return sums;
}

// One pass over the rows as a rule; rows of weight 0 are not looked at, whatever score they hold.
template <class T> Statistics statistics(const Rows<T> &rows, int threads) {
    constexpr int64_t kChunk = 65536;
    std::vector<PartialSums> partial((rows.count + kChunk - 1) / kChunk);
    PartialSums all;
    int64_t present = 0, first = 0;
    while (present < rows.count && !(rows.weight_of(present) > 0)) present++;
    while (first < rows.count && !(rows.weight_of(first) > 0 && (!rows.iid || rows.iid[first]))) first++;
    if (present == rows.count) return {0, 0, 0, 1, INFINITY, -INFINITY, INFINITY, 0, true, false};
    double anchor = first < rows.count ? double(rows.score[first]) : 0, scale = 1, mean = 0, variance = 0;
    if (!std::isfinite(anchor)) anchor = 0;
    // Sums of squares about an anchor far from the mean lose digits, and those of huge or tiny doubles their range:
    // then another pass, about the mean that was found, or in units of the largest score.
    for (int attempt = 0; attempt < 6; attempt++) {
        parallel(threads, partial.size(), [&](int64_t part) {
            const int64_t begin = part * kChunk, end = std::min(begin + kChunk, rows.count);
            partial[part] = partial_sums(rows, begin, end, present, anchor, scale);
        });
        all = PartialSums();
        for (const PartialSums &one : partial) all.add(one);
        const double largest = std::max(all.most[0], all.most[1]), weight = all.sum[1];
        if (all.sum[4] != 0 || !(weight > 0) || -all.most[0] == all.most[1]) break;
        if (sizeof(T) == 8 && scale == 1 && (largest > 1e120 || largest < 1e-120)) {
            scale = unit_of(largest), anchor *= scale;
            continue;
        }
        const double offset = all.sum[2] / weight;
        mean = anchor + offset, variance = std::max(0.0, all.sum[3] / weight - offset * offset);
        if (offset * offset <= 100 * variance || mean == anchor) break;
        anchor = mean;
    }
    const bool varies = variance > 0;
    return {all.sum[0], all.sum[1], (varies ? mean : anchor) / scale, varies ? std::sqrt(variance) / scale : 1,
            -all.most[0] / scale, all.most[1] / scale, -all.most[2], all.most[3], all.sum[4] == 0, varies};
}

// The weight of positives, and of negatives; of the iid ones where `iid` is not null.
struct ClassWeights { double positive = 0, negative = 0; };
template <class T> ClassWeights class_weights(const Rows<T> &rows, const uint8_t *iid) {
    if (!rows.weight && !iid) {
        int64_t positives = 0, j = 0;
        for (uint64_t bytes; j + 8 <= rows.count; j += 8) {
            memcpy(&bytes, rows.positive + j, 8);
            positives += __builtin_popcountll(bytes);
        }
        for (; j < rows.count; j++) positives += rows.positive[j];
        return {double(positives), double(rows.count - positives)};
    }
    double positive[8] = {}, negative[8] = {};
    for (int64_t j = 0; j < rows.count; j++) {
        const double weight = rows.weight_of(j) > 0 ? rows.weight_of(j) : 0.0;
        positive[j & 7] += rows.positive[j] ? weight : 0.0;
        negative[j & 7] += rows.positive[j] || (iid && !iid[j]) ? 0.0 : weight;
    }
    for (int lane = 1; lane < 8; lane++) positive[0] += positive[lane], negative[0] += negative[lane];
    return {positive[0], negative[0]};
}

// A class whose metric is asked for.
template <class T> struct Class : Rows<T> {
    T *gradient;  // null where none is wanted
    double &value;
    int threads;
    Statistics stats;
    ClassWeights weights;
    double temperature;  // in scores
    bool moves;          // whether the temperature moves with the scores

    Class(const Pool &pool, int64_t c, int threads, bool iid_negatives)
        : Rows<T>{static_cast<const T *>(pool.scores) + c * pool.score_stride,
                  pool.positive + c * pool.positive_stride,
                  pool.weight ? static_cast<const T *>(pool.weight) + c * pool.weight_stride : nullptr,
                  pool.iid ? pool.iid + c * pool.iid_stride : nullptr, pool.rows, pool.live},
          gradient(pool.gradient ? static_cast<T *>(pool.gradient) + c * pool.live : nullptr), value(pool.value[c]),
          threads(threads), stats(statistics<T>(*this, threads)),
          weights(class_weights<T>(*this, iid_negatives ? this->iid : nullptr)),
          temperature(std::max(pool.temperature * (pool.in_std ? stats.std : 1.0), 1e-300)),
          moves(pool.in_std && stats.varies) {}

    // Whether the metric is defined; if not, value and gradient are written.
    bool defined() const {
        if (stats.finite && weights.positive > 0 && weights.negative > 0) return true;
        value = NAN;
        if (gradient) std::fill_n(gradient, this->live, stats.finite ? T(0) : T(NAN));
        return false;
    }
};

// The gradient through the standard deviation, rate * w_j (s_j - mean) / std of each iid row: it makes the sum of
// gradient times distance from the mean zero. `moment` is that sum without it, in standard deviations.
template <class T> struct ScaleGradient {
    const Class<T> &of;
    double rate, unit, inverse;  // two factors, as 1 / std may be out of range

    ScaleGradient(const Class<T> &of, double moment)
        : of(of), rate(of.moves ? -moment / of.stats.iid_weight : 0), unit(unit_of(of.stats.std)),
          inverse(1 / (of.stats.std * unit)) {}
    template <class V> RARELOSS_INLINE V standardized(V score) const { return (score - of.stats.mean) * unit * inverse; }
    RARELOSS_INLINE double at(int64_t j) const {
        if (rate == 0) return 0;
        const double weight = !of.iid || of.iid[j] ? of.weight_of(j) : 0;
        return weight > 0 ? weight * rate * standardized(double(of.score[j])) : 0;
    }
    // Adds it to the gradient of some rows, or writes it.
    template <bool kAdd> void write(int64_t begin, int64_t end) const {
        T *gradient = of.gradient;
        const double factor = rate * inverse;
        auto put = [&](int64_t j, double g) { gradient[j] = narrow<T>(kAdd ? gradient[j] + g : g); };
        if (!kAdd && rate == 0) std::fill(gradient + begin, gradient + end, T(0));
        if (rate == 0) return;
        if (of.weight || of.iid) for (int64_t j = begin; j < end; j++) put(j, at(j));
        else for (int64_t j = begin; j < end; j++) put(j, factor * ((of.score[j] - of.stats.mean) * unit));
    }
};

// Calls work(class, threads, room) for each class: many small ones spread over the threads, which share a room each,
// else the threads inside a class.
template <class Room, class Work> int each_class(const Pool &pool, Work work) {
    return guarded([&] {
        constexpr int64_t kLarge = 1 << 18;
        const bool large = pool.rows >= kLarge, many = !large && pool.classes * pool.rows > kLarge;
        const int64_t parts = many ? std::max<int64_t>(1, std::min<int64_t>(pool.threads, pool.classes)) : 1;
        parallel(int(parts), parts, [&](int64_t part) {
            Room room;
            for (int64_t c = part; c < pool.classes; c += parts) work(c, large ? std::max(pool.threads, 1) : 1, room);
        });
    });
}
