// Soft counts of many rows in linear time: by cells where scores lie dense, by a walk over the sorted rows where they
// do not.
//
// Both rest on one expansion: for u = e^-x in [0, 1], sigmoid(-x) = u / (1 + u) = sum_k c_k u^k, to 1e-9 in 12 terms
// and 1e-15 in 20. So the rows below a score act on it through `terms` numbers, A_k = sum_j w_j e^(-k distance_j),
// which are passed on upwards by one multiplication each: no cut-off, no limit of range, and an error relative to each
// row's part.
#pragma once

#include "pool.h"
#include "sort.h"

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
template <int N, class U> RARELOSS_INLINE U value_at(const U *c, U x) {
    const U x2 = x * x, x4 = x2 * x2;
    U sum = 0;
    for (int q = N - 8; q >= 0; q -= 8) {
        const U low = (c[q] + c[q + 1] * x) + (c[q + 2] + c[q + 3] * x) * x2;
        const U high = (c[q + 4] + c[q + 5] * x) + (c[q + 6] + c[q + 7] * x) * x2;
        sum = (low + high * x4) + sum * (x4 * x4);
    }
    return sum;
}
template <int N> RARELOSS_INLINE double value_at(const Doubles<N> &polynomial, double x) {
    return value_at<N>(reinterpret_cast<const double *>(&polynomial), x);
}

template <int N> inline void flush(Doubles<N> &sums) {  // before they become denormal, which is slow
    RARELOSS_EACH sums.v[i] = (sums.v[i] > 1e-190) | (sums.v[i] < -1e-190) ? sums.v[i] : sums.v[i] * 0;
}

// ---------------------------------------------------------------- cells, side by side

// About so many nanoseconds for a pair (`pass_over`), for a cell, for a row in cells, for a row in a walk.
constexpr double kPairCost = 0.7, kCellCost = 120, kCellRowCost = 7, kWalkRowCost = 50;
// Whether cells are cheaper than a walk for so many rows over such a range, in temperatures; each also takes memory.
inline bool cells_pay(double range, int64_t rows) {
    return kCellCost * range < (kWalkRowCost - kCellRowCost) * rows && range < 4096 + double(rows) / 16;
}

// Scores between two bounds, whose rows act on one another. Rows of weight 0 are absent; null: all are there.
template <class T> struct Points {
    const T *score, *weight;
    int64_t n;
    double low, high, temperature;
    int threads;
    bool present(int64_t j) const { return !weight || weight[j] > 0; }
};
// Some of them: those listed, or n from `first` on.
struct Index {
    const int32_t *row;
    int64_t n, first;
    int64_t operator[](int64_t i) const { return row ? row[i] : first + i; }
    int64_t number(int64_t j) const { return j >= first && j < first + n ? j - first : -1; }  // of a range
};

// Both ways of summing, Cells and Walk, are used alike. solve(from, source, sets): source(i, add) calls
// add(set, w) with what from[i] weighs in either of two sets, and the sums F(x) = sum_j w_j sigmoid((x_j - x) / t) of the sets that
// sets(j) names, in bits, are prepared for row j. take(to, set, give) then calls give(i, count, slope) with F at to[i]
// and the sum of w_j sigmoid'((x_j - x) / t). kSelf of a row's pair with itself is in F.
typedef RARELOSS_VECTOR(int32_t, 4 * kLanes<double>) Whole;
template <class T> class Cells {
  public:
    static constexpr double kSelf = .5;
    static constexpr int kNodes = Orders<T>::nodes;

    explicit Cells(const Points<T> &points)
        : points(points), scale(1 / points.temperature), cells(int64_t((points.high - points.low) * scale) + 1),
          counts(2 * cells), slopes(2 * cells) {}

    template <class Source, class Sets> void solve(const Index &from, Source source, Sets) {
        const int threads = points.threads;
        std::swap(moments, weights);
        moments = Buffer<Nodes<T>>(2 * cells * threads);
        parallel(threads, threads, [&](int64_t part) {
            Nodes<T> *to = moments.get() + 2 * cells * part;
            std::fill_n(to, 2 * cells, Nodes<T>{});
            each(from, from.n * part / threads, from.n * (part + 1) / threads, [&](int64_t i, int32_t cell, double x) {
                const Nodes<T> power = powers<kNodes>(x);
                source(i, [&](int set, double w) { to[2 * cell + set] += power * w; });
            });
        });
        for (int64_t i = 2 * cells; i < 2 * cells * threads; i++) moments[i % (2 * cells)] += moments[i];
        upwards();
        downwards();
    }
    template <class Give> void take(const Index &to, int set, Give give) const {
        const Nodes<T> *count = counts.get() + set, *slope = slopes.get() + set * cells;
        each(to, 0, to.n, [&](int64_t i, int32_t cell, double x) {
            give(i, value_at(count[2 * cell], x), value_at(slope[cell], x));
        });
    }
    // Calls give(score, w, slope) for each node, with what the sources of the solve before the last weigh there: sums
    // over these rows of a slope times a linear function of the score.
    template <class Give> void each_node(int set, Give give) const {
        for (int64_t c = 0; c < cells; c++)
            for (int i = 0; i < kNodes; i++) {
                const double x = tables<T>().offset[i], score = points.low + (c + (1 + x) / 2) * points.temperature;
                give(score, weights[2 * c + set][i], value_at(slopes[set * cells + c], x));
            }
    }
    // Calls give(i, the slope in the first set times `factor` and a linear function of the score), in the scores' type,
    // for many rows; `rates` has them as polynomials.
    template <class Linear> Buffer<T> rates(double factor, Linear linear) const {
        Buffer<T> rate(cells * kNodes);
        for (int64_t c = 0; c < cells; c++) {
            const double low = points.low + c * points.temperature, high = low + points.temperature;
            const double middle = linear(low + points.temperature / 2), rise = (linear(high) - linear(low)) / 2;
            for (int q = 0; q < kNodes; q++)
                rate[kNodes * c + q] = T(slopes[c][q] * factor + (q == 0 ? middle : q == 1 ? rise : 0));
        }
        return rate;
    }
    template <class Give> void take_rates(const Buffer<T> &rates, const Index &to, Give give) const {
        const T *rate = rates.get();
        each(to, 0, to.n, [=](int64_t i, int32_t cell, double x) {
            give(i, value_at<kNodes>(rate + int64_t(kNodes) * cell, T(x)));
        });
    }

  private:
    // Calls work(i, cell, offset in the cell from -1 to 1) for each row present of a part of a list.
    template <class Work> void each(const Index &list, int64_t i, int64_t end, Work work) const {
        constexpr int N = kBlock;
        for (; i < end; i += N) {
            const int64_t n = std::min<int64_t>(N, end - i);
            T listed[N] = {};
            const T *score = list.row || n < N ? listed : points.score + list.first + i;
            for (int64_t r = 0; r < n && score == listed; r++) listed[r] = points.score[list[i + r]];
            const Block x = (wide<N>(score) - points.low) * scale;
            int32_t cell[N];
            double offset[N];
            RARELOSS_EACH {  // an absent row may have any score
                const Vec<double> bounded = vmin(vmax(x.v[i], Vec<double>{}), Vec<double>{} + double(cells));
                const Whole whole = vmin(__builtin_convertvector(bounded, Whole), Whole{} + int32_t(cells - 1));
                memcpy(cell + i * kLanes<double>, &whole, sizeof whole);
                store(offset + i * kLanes<double>, 2 * (bounded - __builtin_convertvector(whole, Vec<double>)) - 1.0);
            }
            if (n == N && !points.weight) _Pragma("GCC unroll 8") for (int r = 0; r < N; r++) work(i + r, cell[r], offset[r]);
            else for (int64_t r = 0; r < n; r++) if (points.present(list[i + r])) work(i + r, cell[r], offset[r]);
        }
    }

    // What lies below a cell; its moments sum_j w_j offset^p become weights of its nodes.
    void upwards() {
        const Tables<T> &table = tables<T>();
        Terms<T> sums[2] = {};
        for (int64_t c = 0; c < cells; c++)
            for (int s = 0; s < 2; s++) {
                Nodes<T> at_nodes{}, node{}, &moment = moments[2 * c + s];
                for (int k = 0; k < Orders<T>::terms; k++) at_nodes += table.from_last[k] * sums[s][k];
                counts[2 * c + s] = at_nodes;
                sums[s] *= table.decay;
                if (c % 8 == 7) flush(sums[s]);
                if (!(moment[0] > 0)) continue;
                for (int p = 0; p < kNodes; p++) node += table.from_power[p] * moment[p];
                for (int i = 0; i < kNodes; i++) sums[s] += table.to_next[i] * node[i];
                moment = node;
            }
    }
    // What lies above, and the cell itself; then the sums as polynomials.
    void downwards() {
        const Tables<T> &table = tables<T>();
        Terms<T> sums[2] = {};
        double above[2] = {};
        for (int64_t c = cells - 1; c >= 0; c--)
            for (int s = 0; s < 2; s++) {
                const Nodes<T> &node = moments[2 * c + s];
                Nodes<T> at_nodes = counts[2 * c + s], power{}, slope{};
                const bool filled = hsum(node) > 0;
                for (int k = 0; k < Orders<T>::terms; k++) at_nodes += table.from_next[k] * sums[s][k];
                for (int i = 0; i < kNodes && filled; i++) at_nodes += table.within[i] * node[i];
                for (int p = 0; p < kNodes; p++) power[p] = hsum(at_nodes * table.from_power[p]);
                for (int p = 1; p < kNodes; p++) slope[p - 1] = -2 * p * power[p];
                power[0] += above[s];
                counts[2 * c + s] = power, slopes[s * cells + c] = slope;
                sums[s] *= table.decay;
                if (c % 8 == 7) flush(sums[s]);
                if (!filled) continue;
                above[s] += hsum(node);
                for (int i = 0; i < kNodes; i++) sums[s] += table.to_last[i] * node[i];
            }
    }

    const Points<T> &points;
    double scale;
    int64_t cells;
    Buffer<Nodes<T>> moments, weights, counts;  // [cells, 2 sets]
    Buffer<Nodes<T>> slopes;                    // [2 sets, cells]
};

// ---------------------------------------------------------------- a walk over sorted rows, for scores far apart

template <class T> class Walk {
  public:
    static constexpr double kSelf = 0;

    explicit Walk(const Points<T> &points) {
        n = all = points.n;
        if (points.weight) {
            std::vector<int32_t> present;
            std::vector<T> score;
            for (int64_t j = 0; j < all; j++)
                if (points.present(j)) score.push_back(points.score[j]), present.push_back(int32_t(j));
            n = present.size();
            sorted = sort_scores(score.data(), n, present.data());
        } else {
            sorted = sort_scores(points.score, n);
        }
        sorted.drop_spare();
        sums = Buffer<Sums>(2 * n), asked = Buffer<uint8_t>(n), decay = Buffer<double>(n + kBlock);
        for (int64_t i = 0; i < n + kBlock; i++) {  // e^-(distance to the next row / temperature)
            const double gap = i + 1 < n ? double(sorted.score(i + 1)) - double(sorted.score(i)) : INFINITY;
            decay[i] = std::min(gap / points.temperature * M_LOG2E, 1020.0);
        }
        for (int64_t i = 0; i < n; i += kLanes<double>) {
            const Vec<double> x = load(decay.get() + i);
            store(decay.get() + i, x < 1000.0 ? exp2(-x) : Vec<double>{});
        }
    }

    template <class Source, class Sets> void solve(const Index &from, Source source, Sets sets) {
        const Tables<T> &table = tables<T>();
        constexpr int N = Orders<T>::terms;
        const int32_t *listed = numbers(from);
        Sums *at = sums.get();
        for (int up = 1; up >= 0; up--) {
            Terms<T> passing[2] = {};
            double passed[2] = {};
            for (int64_t step = 0; step < n; step++) {
                const int64_t i = up ? step : n - 1 - step, j = sorted.item[i].row;
                if (up) asked[i] = uint8_t(sets(j));
                for (int step_of_set = 0; step_of_set < 2 && asked[i]; step_of_set++) {
                    const int s = up ? step_of_set : 1 - step_of_set;
                    if (!(asked[i] >> s & 1)) continue;
                    const double count = hsum(passing[s] * table.value), slope = hsum(passing[s] * table.slope);
                    if (up) *at++ = {count, slope};
                    else --at, at->count += passed[s] - count, at->slope += slope;
                }
                double w[2] = {};
                if (const int64_t k = listed ? listed[i] : from.number(j); k >= 0)
                    source(k, [&](int set, double weight) { w[set] = weight; });
                const double e = up ? decay[i] : i ? decay[i - 1] : 0;
                // Far on, all but the first term have died away.
                const Terms<T> decays = e < 1e-13 ? table.first * e : powers<N>(e) * e;
                for (int s = 0; s < 2; s++) {
                    passed[s] += w[s];
                    passing[s] = (passing[s] + w[s]) * decays;
                    if (step % 32 == 31) flush(passing[s]);
                }
            }
        }
    }
    template <class Give> void take(const Index &to, int set, Give give) {
        const int32_t *listed = numbers(to);
        const Sums *at = sums.get();
        for (int64_t i = 0; i < n; i++)
            for (int s = 0; s < 2 && asked[i]; s++) {
                if (!(asked[i] >> s & 1)) continue;
                const int64_t k = s != set ? -1 : listed ? listed[i] : to.number(sorted.item[i].row);
                if (k >= 0) give(k, at->count, at->slope);
                at++;
            }
    }

  private:
    struct Sums { double count, slope; };
    // Which of a list each row is, in ascending order of scores, or -1; null where the list is a range.
    const int32_t *numbers(const Index &list) {
        if (!list.row || list.row == last_list) return list.row ? number.data() : nullptr;
        std::vector<int32_t> by_row(all, -1);
        for (int64_t i = 0; i < list.n; i++) by_row[list[i]] = int32_t(i);
        number.resize(n), last_list = list.row;
        for (int64_t i = 0; i < n; i++) number[i] = by_row[sorted.item[i].row];
        return number.data();
    }

    int64_t n, all;
    Sorted<T> sorted;
    Buffer<double> decay;
    std::vector<int32_t> number;
    const int32_t *last_list = nullptr;
    Buffer<uint8_t> asked;  // the sets, in bits, of each row present in ascending order
    Buffer<Sums> sums;      // of these rows, one behind the other
};
