// Statistics of a pool, and soft counts of all its rows in linear time: by cells where scores lie dense, by a walk over
// the sorted rows where they do not.
//
// Both rest on one expansion: for u = e^-x in [0, 1], sigmoid(-x) = u / (1 + u) = sum_k c_k u^k, to 1e-9 in 12 terms
// and 1e-15 in 20. So the rows below a score act on it through `terms` numbers, A_k = sum_j w_j e^(-k distance_j),
// which are passed on upwards by one multiplication each: no cut-off, no limit of range, and an error relative to each
// row's part.
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

// The nearest number of the scores' type: a slope may overflow where the temperature is tiny, its sign still teaches.
template <class T> inline T narrow(double x) {
    constexpr double most = std::numeric_limits<T>::max();
    return T(x > most ? most : x < -most ? -most : x);  // NaN stays
}

// ---------------------------------------------------------------- statistics

struct Statistics {
    double weight, iid_weight;       // sums over the rows present (weight above 0), and over the iid ones among them
    double mean, std;                // of the iid rows, weighted; std is 1 where all are equal
    double low, high;                // of the rows present; low > high where there are none
    double weight_low, weight_high;  // the lightest and the heaviest row present
    bool finite;                     // whether every row present has a finite score
    bool varies;                     // whether the iid rows' scores differ
};

constexpr int kBlock = 8;  // rows taken together where their scores are wanted as doubles
using Block = Doubles<kBlock>;

// The last rows of a pool, filled up to a block with rows of weight 0.
template <class T> struct PaddedBlock {
    T score[kBlock] = {}, weight[kBlock] = {};
    uint8_t positive[kBlock] = {}, iid[kBlock] = {};
    PaddedBlock(const Rows<T> &rows, int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; j++) {
            score[j - begin] = rows.score[j];
            weight[j - begin] = rows.weight ? rows.weight[j] : T(1);
            positive[j - begin] = rows.positive ? rows.positive[j] : 0;
            iid[j - begin] = rows.iid ? rows.iid[j] : 1;
        }
    }
    Rows<T> rows() const { return {score, positive, weight, iid, kBlock, kBlock}; }
};

// Over some rows: sums of weight, iid weight, w d, w d^2 with d = score * scale - anchor, and s - s, NaN if one is not
// finite; the largest of -score, score, -weight, weight.
struct PartialSums {
    double sum[5] = {}, most[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    void add(const PartialSums &other) {
        for (int k = 0; k < 5; k++) sum[k] += other.sum[k];
        for (int k = 0; k < 4; k++) most[k] = std::max(most[k], other.most[k]);
    }
};
template <class T>
PartialSums partial_sums(const Rows<T> &rows, int64_t begin, int64_t end, double anchor, double scale) {
    using V = Vec<double>;
    constexpr int N = kBlock;
    const V nothing = V{} - INFINITY;
    Block sum[5] = {}, most[4];
    for (Block &one : most) one = Block{} - INFINITY;
    int64_t j = begin;
    for (; j + N <= end; j += N) {
        const Block score = wide<N>(rows.score + j) * scale, given = rows.weight ? wide<N>(rows.weight + j) : Block{};
        const Block iid = rows.iid ? wide<N>(rows.iid + j) : Block{};
        RARELOSS_EACH {
            V s = score.v[i], w = V{} + 1.0, low = -s, high = s;
            if (rows.weight) {
                w = given.v[i];
                const auto present = w > 0.0;
                s = present ? s : V{} + anchor, low = present ? low : nothing, high = present ? high : nothing;
                most[2].v[i] = vmax(present ? -w : nothing, most[2].v[i]), most[3].v[i] = vmax(w, most[3].v[i]);
                sum[0].v[i] += w;
            }
            most[0].v[i] = vmax(low, most[0].v[i]), most[1].v[i] = vmax(high, most[1].v[i]);
            sum[4].v[i] += s - s;
            if (rows.iid) w *= iid.v[i];
            if (rows.weight || rows.iid) sum[1].v[i] += w;
            const V d = s - anchor, wd = rows.weight || rows.iid ? w * d : d;
            sum[2].v[i] += wd, sum[3].v[i] += wd * d;
        }
    }
    PartialSums sums;
    for (int k = 0; k < 5; k++) sums.sum[k] = hsum(sum[k]);
    for (int k = 0; k < 4; k++) for (int i = 0; i < N; i++) sums.most[k] = std::max(sums.most[k], most[k][i]);
    if (!rows.weight) sums.sum[0] = double(j - begin);
    if (!rows.weight && !rows.iid) sums.sum[1] = double(j - begin);
    if (!rows.weight && j > begin) sums.most[2] = -1, sums.most[3] = 1;
    if (j < end) sums.add(partial_sums(PaddedBlock<T>(rows, j, end).rows(), 0, N, anchor, scale));
    return sums;
}

// One pass over the rows as a rule; rows of weight 0 are not looked at, whatever score they hold.
template <class T> Statistics statistics(const Rows<T> &rows, int threads) {
    constexpr int64_t kChunk = 65536;
    std::vector<PartialSums> partial((rows.count + kChunk - 1) / kChunk);
    PartialSums all;
    int64_t first = 0;
    auto outside = [&](int64_t j) { return (rows.weight && !(rows.weight[j] > 0)) || (rows.iid && !rows.iid[j]); };
    while (first < rows.count && outside(first)) first++;
    double anchor = first < rows.count ? double(rows.score[first]) : 0, scale = 1, mean = 0, variance = 0;
    if (!std::isfinite(anchor)) anchor = 0;
    // Sums of squares about an anchor far from the mean lose digits, and those of huge or tiny doubles their range:
    // then another pass, about the mean that was found, or in units of the largest score.
    for (int attempt = 0; attempt < 6; attempt++) {
        parallel(threads, partial.size(), [&](int64_t part) {
            partial[part] = partial_sums(rows, part * kChunk, std::min((part + 1) * kChunk, rows.count), anchor, scale);
        });
        all = PartialSums();
        for (const PartialSums &one : partial) all.add(one);
        const double largest = std::max(all.most[0], all.most[1]), weight = all.sum[1];
        if (all.sum[4] != 0 || !(weight > 0) || -all.most[0] == all.most[1]) break;
        if (sizeof(T) == 8 && scale == 1 && (largest > 1e120 || largest < 1e-120)) {
            scale = std::ldexp(1.0, -std::ilogb(largest)), anchor *= scale;
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

// ---------------------------------------------------------------- the expansion, and polynomials over a cell

template <class T> struct Orders;
template <> struct Orders<float> { static constexpr int nodes = 8, terms = 12; };
template <> struct Orders<double> { static constexpr int nodes = 16, terms = 20; };
template <class T> using Nodes = Doubles<Orders<T>::nodes>;  // values at a cell's nodes, or coefficients by power
template <class T> using Terms = Doubles<Orders<T>::terms>;  // A_1 .. A_terms

// Constants of a cell, one temperature wide: nodes and sums go into one another by small matrices. Offsets run from
// -1 to 1 over a cell; whatever a row adds is spread over the nodes as a polynomial of its offset.
template <class T> struct Tables {
    static constexpr int n = Orders<T>::nodes, m = Orders<T>::terms;
    Nodes<T> offset{};                       // of each node
    Nodes<T> from_power[n] = {};             // [power][node]: what a power of the offset weighs at each node
    Terms<T> to_next[n] = {}, to_last[n] = {};      // what a unit at a node adds to the sums at the upper, lower end
    Nodes<T> from_last[m] = {}, from_next[m] = {};  // the count at each node by the sums from below, from above
    Nodes<T> within[n] = {};                 // [source][target]: sigmoid(source - target)
    Terms<T> decay{}, value{}, slope{}, first{};   // e^-k; c_k; k c_k; 1, 0, 0, ..

    Tables() {
        long double place[n], cheb[n][n] = {{1}}, lower[m + 1] = {1}, upper[m + 1] = {-1, 2}, end = 0, c[m], last = 0;
        const long double pi = std::acos(-1.0L);
        for (int i = 0; i < n; i++) place[i] = std::cos((2 * i + 1) * pi / (2 * n)), offset[i] = double(place[i]);
        cheb[1][1] = 1;
        for (int k = 2; k < n; k++)
            for (int p = 0; p < n; p++) cheb[k][p] = (p ? 2 * cheb[k - 1][p - 1] : 0) - cheb[k - 2][p];
        for (int p = 0; p < n; p++)
            for (int i = 0; i < n; i++) {
                long double sum = p == 0;
                for (int k = 1; k < n; k++) sum += 2 * std::cos(k * (2 * i + 1) * pi / (2 * n)) * cheb[k][p];
                from_power[p][i] = double(sum / n);
            }
        // sum_k c_k u^k = u (1 - T(u) / T(-1)) / (1 + u), T the Chebyshev polynomial of degree m on [0, 1]
        for (int d = 1; d < m; d++) {
            long double next[m + 1];
            for (int i = 0; i <= m; i++) next[i] = (i ? 4 * upper[i - 1] : 0) - 2 * upper[i] - lower[i];
            memcpy(lower, upper, sizeof lower), memcpy(upper, next, sizeof upper);
        }
        for (int i = 0; i <= m; i++) end += (i & 1 ? -1 : 1) * upper[i];
        for (int i = 0; i < m; i++) last = c[i] = (i == 0) - upper[i] / end - last;
        for (int k = 0; k < m; k++) {
            decay[k] = std::exp(-(k + 1.0)), first[k] = k == 0;
            value[k] = double(c[k]), slope[k] = double((k + 1) * c[k]);
            for (int i = 0; i < n; i++) {
                const long double up = std::exp(-(k + 1) * (1 - place[i]) / 2);
                const long double down = std::exp(-(k + 1) * (1 + place[i]) / 2);
                to_next[i][k] = double(up), to_last[i][k] = double(down);
                from_last[k][i] = double(c[k] * down), from_next[k][i] = double(-c[k] * up);
            }
        }
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n; j++) within[i][j] = double(1 / (1 + std::exp((place[j] - place[i]) / 2)));
    }
};
template <class T> const Tables<T> &tables() {
    static const Tables<T> once;  // the language locks this: safe from several threads, and after a fork
    return once;
}

template <int N> inline Doubles<N> powers(double x) {  // 1, x, x^2, ..: each lane multiplies by what its bits say
    static constexpr int64_t kBit[3][8] = {
        {0, -1, 0, -1, 0, -1, 0, -1}, {0, 0, -1, -1, 0, 0, -1, -1}, {0, 0, 0, 0, -1, -1, -1, -1}};
    using V = Vec<double>;
    Doubles<N> p;
    V step = splat<double>(x), product = V{} + 1.0;
    for (int bit = 0; 1 << bit < kLanes<double>; bit++, step *= step) {
        Simd<double>::Signed mask;
        memcpy(&mask, kBit[bit], sizeof mask);
        product = mask ? product * step : product;
    }
    p.v[0] = product;
    for (int i = 1; i < Doubles<N>::count; i++) p.v[i] = p.v[i - 1] * step;
    return p;
}
template <int N> inline double horner(const double *coefficient, double x) {
    double sum = coefficient[N - 1];
    for (int i = N - 2; i >= 0; i--) sum = sum * x + coefficient[i];
    return sum;
}

// ---------------------------------------------------------------- cells, side by side

// Where scores lie on a line of cells; nothing is stored by row.
struct Line {
    double low, scale;
    int64_t cells;
    int32_t place(double score, double *offset) const {
        const double x = (score - low) * scale;
        const int32_t cell = int32_t(x);
        *offset = 2 * (x - cell) - 1;
        return cell;
    }
    void place(const Block &score, int32_t *cell, double *offset) const {
        constexpr int N = kBlock;
        typedef RARELOSS_VECTOR(int32_t, 4 * kLanes<double>) Cells;
        const Block x = (score - low) * scale;
        RARELOSS_EACH {
            const Cells whole = __builtin_convertvector(x.v[i], Cells);
            memcpy(cell + i * kLanes<double>, &whole, sizeof whole);
            store(offset + i * kLanes<double>, 2 * (x.v[i] - __builtin_convertvector(whole, Vec<double>)) - 1.0);
        }
    }
};
// About so many nanoseconds for a pair (`pass_over`), for a cell, for a row in cells, for a row in a walk.
constexpr double kPairCost = 0.7, kCellCost = 120, kCellRowCost = 7, kWalkRowCost = 50;
// Whether cells are cheaper than a walk for so many rows over such a range, in temperatures; each also takes memory.
inline bool cells_pay(double range, int64_t rows) {
    return kCellCost * range < (kWalkRowCost - kCellRowCost) * rows && range < 4096 + double(rows) / 16;
}
inline Line line_of(double low, double high, double temperature) {
    return {low, 1 / temperature, int64_t((high - low) * (1 / temperature)) + 1};
}

template <int N> inline void flush(Doubles<N> &sums) {  // before they become denormal, which is slow
    RARELOSS_EACH sums.v[i] = (sums.v[i] > 1e-190) | (sums.v[i] < -1e-190) ? sums.v[i] : sums.v[i] * 0;
}

// F(x) = sum_j w_j sigmoid((x_j - x) / t) of two sets of rows at once, as polynomials: `moments` [cells, 2] holds
// each cell's sums of w_j offset^p (left as weights of its nodes), in cells that are `filled`; `count` [cells, 2] gets,
// in the cells that are `wanted`, the coefficients of F by powers of the offset.
template <class T>
void soft_counts_of_cells(Nodes<T> *moments, Nodes<T> *count, const uint8_t *filled, const uint8_t *wanted,
                          int64_t cells) {
    const Tables<T> &table = tables<T>();
    constexpr int n = Orders<T>::nodes, m = Orders<T>::terms;
    Terms<T> sums[2] = {};
    bool any = false;
    for (int64_t c = 0; c < cells; c++) {  // upwards: what lies below
        for (int s = 0; s < 2 && wanted[c]; s++) {
            Nodes<T> at_nodes{};
            for (int k = 0; k < m && any; k++) at_nodes += table.from_last[k] * sums[s][k];
            count[2 * c + s] = at_nodes;
        }
        for (int s = 0; s < 2 && any; s++) sums[s] *= table.decay;
        for (int s = 0; s < 2 && filled[c]; s++) {
            Nodes<T> node{};
            for (int p = 0; p < n; p++) node += table.from_power[p] * moments[2 * c + s][p];
            moments[2 * c + s] = node;
            for (int i = 0; i < n; i++) sums[s] += table.to_next[i] * node[i];
        }
        any |= filled[c];
        if (c % 8 == 7) for (auto &one : sums) flush(one);
    }
    double above[2] = {};
    for (auto &one : sums) one = Terms<T>{};
    any = false;
    for (int64_t c = cells - 1; c >= 0; c--) {  // downwards: what lies above, and the cell itself
        for (int s = 0; s < 2 && wanted[c]; s++) {
            Nodes<T> at_nodes = count[2 * c + s], power{};
            for (int k = 0; k < m && any; k++) at_nodes += table.from_next[k] * sums[s][k];
            for (int i = 0; i < n && filled[c]; i++) at_nodes += table.within[i] * moments[2 * c + s][i];
            for (int p = 0; p < n; p++) power[p] = hsum(at_nodes * table.from_power[p]);
            power[0] += above[s];
            count[2 * c + s] = power;
        }
        for (int s = 0; s < 2 && any; s++) sums[s] *= table.decay;
        for (int s = 0; s < 2 && filled[c]; s++) {
            above[s] += hsum(moments[2 * c + s]);
            for (int i = 0; i < n; i++) sums[s] += table.to_last[i] * moments[2 * c + s][i];
        }
        any |= filled[c];
        if (c % 8 == 7) for (auto &one : sums) flush(one);
    }
}
// F and its slope sum_j w_j sigmoid'((x_j - x) / t), at an offset inside a cell.
template <class T> inline double count_at(const Nodes<T> &count, double offset) {
    return horner<Orders<T>::nodes>(reinterpret_cast<const double *>(&count), offset);
}
template <class T> inline double slope_at(const Nodes<T> &count, double offset) {
    double sum = 0;
    for (int p = Orders<T>::nodes - 1; p > 0; p--) sum = sum * offset - 2 * p * count[p];
    return sum;
}

// ---------------------------------------------------------------- a walk over sorted rows, for scores far apart

// e^-(distance to the next row / temperature) of sorted rows; 0 where that underflows.
template <class T> Buffer<double> decays_of(const Sorted<T> &sorted, int64_t n, double temperature) {
    Buffer<double> decay(n + kBlock);
    for (int64_t i = 0; i + 1 < n; i++)
        decay[i] = std::min((double(sorted.score(i + 1)) - double(sorted.score(i))) / temperature * M_LOG2E, 1e4);
    for (int64_t i = std::max<int64_t>(n - 1, 0); i < n + kBlock; i++) decay[i] = 1e4;
    for (int64_t i = 0; i < n; i += kLanes<double>) {
        const Vec<double> x = load(decay.get() + i);
        store(decay.get() + i, x < 1000.0 ? exp2(-vmin(x, Vec<double>{} + 1000.0)) : Vec<double>{});
    }
    return decay;
}

// Sums of two sets of rows at sorted rows. source(i, w) sets w[0], w[1] to what row i adds to each set; of row i the
// sets in the bits of wanted(i) are handed to take(i, set, up, count, slope), once from below (up) and once from above:
// the two calls add up to F and its slope, a row's pair with itself left out.
template <class T, class Source, class Wanted, class Take>
void walk(const double *decay, int64_t n, Source source, Wanted wanted, Take take) {
    const Tables<T> &table = tables<T>();
    constexpr int N = Orders<T>::terms;
    for (int up = 1; up >= 0; up--) {
        Terms<T> sums[2] = {};
        double passed[2] = {}, w[2];
        for (int64_t step = 0; step < n; step++) {
            const int64_t i = up ? step : n - 1 - step;
            if (const int sets = wanted(i))
                for (int s = 0; s < 2; s++)
                    if (sets >> s & 1) {
                        const double count = hsum(sums[s] * table.value);
                        take(i, s, bool(up), up ? count : passed[s] - count, hsum(sums[s] * table.slope));
                    }
            source(i, w);
            const double e = up ? decay[i] : i ? decay[i - 1] : 0;
            for (int s = 0; s < 2; s++) {
                passed[s] += w[s];
                sums[s] = sums[s] + w[s];
            }
            // Far on, all but the first term have died away.
            const Terms<T> decays = e < 1e-13 ? table.first * e : powers<N>(e) * e;
            for (auto &one : sums) one *= decays;
            if (step % 32 == 31) for (auto &one : sums) flush(one);
        }
    }
}
