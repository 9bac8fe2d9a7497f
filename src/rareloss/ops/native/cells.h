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
template <> struct Orders<float> { static constexpr int terms = 12; static constexpr double width = 1; };
template <> struct Orders<double> { static constexpr int terms = 20; static constexpr double width = .25; };
constexpr int kNodes = 8;         // of a cell, `width` temperatures wide
using Nodes = Doubles<kNodes>;    // coefficients, or moments, by powers of an offset
template <class T> using Terms = Doubles<Orders<T>::terms>;  // A_1 .. A_terms

// Constants of a cell; offsets run from -1 to 1 over it. Whatever depends on an offset there is
// the polynomial through its values at n Chebyshev nodes, for the rows that act and for those acted on.
template <class T> struct Tables {
    static constexpr int n = kNodes, m = Orders<T>::terms;
    static constexpr long double half = Orders<T>::width / 2;
    Terms<T> to_above[n] = {}, to_below[n] = {};      // what a moment adds to the sums at the upper, lower end
    Nodes from_below[m] = {}, from_above[m] = {};  // the count in the cell by the sums at its lower, upper end
    Nodes within[n] = {};                          // the count by the cell's own moments
    Terms<T> decay{}, value{}, slope{}, first{};      // e^-k; c_k; k c_k; 1, 0, 0, ..

    Tables() {
        long double x[n], fit[n][n], cheb[n][n] = {{1}};  // fit: the coefficient [power] by the value at [node]
        const long double pi = std::acos(-1.0L);
        for (int i = 0; i < n; i++) x[i] = std::cos((2 * i + 1) * pi / (2 * n));
        cheb[1][1] = 1;
        for (int k = 2; k < n; k++)
            for (int p = 0; p < n; p++) cheb[k][p] = (p ? 2 * cheb[k - 1][p - 1] : 0) - cheb[k - 2][p];
        for (int p = 0; p < n; p++)
            for (int i = 0; i < n; i++) {
                fit[p][i] = (p == 0) / (long double)n;
                for (int k = 1; k < n; k++) fit[p][i] += std::cos(k * (2 * i + 1) * pi / (2 * n)) * cheb[k][p] * 2 / n;
            }
        long double c[m];
        expand(c);
        for (int k = 0; k < m; k++) {
            decay[k] = double(std::exp(-2 * half * (k + 1))), first[k] = k == 0;
            value[k] = double(c[k]), slope[k] = double((k + 1) * c[k]);
            for (int p = 0; p < n; p++) {
                long double rising = 0, falling = 0;
                for (int i = 0; i < n; i++) rising += fit[p][i] * std::exp(-(k + 1) * half * (1 - x[i]));
                for (int i = 0; i < n; i++) falling += fit[p][i] * std::exp(-(k + 1) * half * (1 + x[i]));
                to_above[p][k] = double(rising), to_below[p][k] = double(falling);
                from_below[k][p] = double(c[k] * falling), from_above[k][p] = double(-c[k] * rising);
            }
        }
        for (int p = 0; p < n; p++)
            for (int i = 0; i < n; i++)
                for (int j = 0; j < n; j++) {
                    const long double pair = fit[p][i] / (1 + std::exp((x[j] - x[i]) * half));
                    for (int q = 0; q < n; q++) within[p][q] += double(pair * fit[q][j]);
                }
    }
    // sum_k c_k u^k = u (1 - T(u) / T(-1)) / (1 + u), T the Chebyshev polynomial of degree m on [0, 1].
    static void expand(long double *c) {
        long double lower[m + 1] = {1}, upper[m + 1] = {-1, 2}, next[m + 1], end = 0, last = 0;
        for (int d = 1; d < m; d++) {
            for (int i = 0; i <= m; i++) next[i] = (i ? 4 * upper[i - 1] : 0) - 2 * upper[i] - lower[i];
            memcpy(lower, upper, sizeof lower), memcpy(upper, next, sizeof upper);
        }
        for (int i = 0; i <= m; i++) end += (i & 1 ? -1 : 1) * upper[i];
        for (int i = 0; i < m; i++) last = c[i] = (i == 0) - upper[i] / end - last;
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
template <class U> RARELOSS_INLINE U value_at(const U *c, U x) {
    const U x2 = x * x, low = (c[0] + c[1] * x) + (c[2] + c[3] * x) * x2;
    return low + ((c[4] + c[5] * x) + (c[6] + c[7] * x) * x2) * (x2 * x2);
}
RARELOSS_INLINE double value_at(const Nodes &polynomial, double x) {
    return value_at(reinterpret_cast<const double *>(&polynomial), x);
}

template <int N> inline void flush(Doubles<N> &sums) {  // before they become denormal, which is slow
    RARELOSS_EACH sums.v[i] = (sums.v[i] > 1e-190) | (sums.v[i] < -1e-190) ? sums.v[i] : sums.v[i] * 0;
}

// ---------------------------------------------------------------- cells, side by side

// About so many nanoseconds for a pair (`pass_over`), for a cell, for a row in cells, for a row in a walk.
constexpr double kPairCost = 0.7, kCellCost = 120, kCellRowCost = 7, kWalkRowCost = 50;
// Whether cells are cheaper than a walk for so many rows over such a range, in cells; each also takes memory.
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

// Both ways of summing, Cells and Walk, are used alike. solve(from, source, to, sets): source(i, add) calls add(set, w)
// with what from[i] weighs in either of two sets, and the sums F(x) = sum_j w_j sigmoid((x_j - x) / t) of the sets that
// sets(j) names, in bits, are prepared for each row j of `to`. take(to, set, give) then calls give(i, count, slope) with
// F at to[i], no number without kCounts, and the sum of w_j sigmoid'((x_j - x) / t). kSelf of a row's pair with itself
// is in F.
typedef RARELOSS_VECTOR(int32_t, 4 * kLanes<double>) Whole;
template <class T> class Cells {
  public:
    static constexpr double kSelf = .5;

    explicit Cells(const Points<T> &points)
        : points(points), width(points.temperature * Orders<T>::width), scale(1 / width), cells(int64_t((points.high - points.low) * scale) + 1),
          counts(2 * cells), slopes(2 * cells) {}

    template <bool kCounts = true, class Source, class Sets>
    void solve(const Index &from, Source source, const Index &to, Sets) {
        const int threads = points.threads;
        wanted.assign(cells, !to.row);
        if (to.row) each(to, 0, to.n, [&](int64_t, int32_t cell, double) { wanted[cell] = 1; });
        std::swap(moments, weights);
        moments = Buffer<Nodes>(2 * cells * threads);
        parallel(threads, threads, [&](int64_t part) {
            Nodes *to = moments.get() + 2 * cells * part;
            std::fill_n(to, 2 * cells, Nodes{});
            each(from, from.n * part / threads, from.n * (part + 1) / threads, [&](int64_t i, int32_t cell, double x) {
                const Nodes power = powers<kNodes>(x);
                source(i, [&](int set, double w) { to[2 * cell + set] += power * w; });
            });
        });
        for (int64_t i = 2 * cells; i < 2 * cells * threads; i++) moments[i % (2 * cells)] += moments[i];
        sum_over_cells();
    }
    template <class Give> void take(const Index &to, int set, Give give) const {
        const Nodes *count = counts.get() + set, *slope = slopes.get() + set;
        each(to, 0, to.n, [&](int64_t i, int32_t cell, double x) {
            give(i, value_at(count[2 * cell], x), value_at(slope[2 * cell], x));
        });
    }
    // Over the first set of the solve before the last: the sum of w_j slope_j linear(x_j).
    template <class Linear> double moment(Linear linear) const {
        double sum = 0;
        for (int64_t c = 0; c < cells; c++) {
            const auto [middle, rise] = over_cell(c, linear);
            for (int p = 0; p + 1 < kNodes; p++)
                sum += slopes[2 * c][p] * (middle * weights[2 * c][p] + rise * weights[2 * c][p + 1]);
        }
        return sum;
    }
    // Calls give(i, the slope in the first set times `factor` and a linear function of the score), in the scores' type,
    // for many rows; `rates` has them as polynomials.
    template <class Linear> Buffer<T> rates(double factor, Linear linear) const {
        Buffer<T> rate(cells * kNodes);
        for (int64_t c = 0; c < cells; c++) {
            const auto [middle, rise] = over_cell(c, linear);
            for (int q = 0; q < kNodes; q++)
                rate[kNodes * c + q] = T(slopes[2 * c][q] * factor + (q == 0 ? middle : q == 1 ? rise : 0));
        }
        return rate;
    }
    template <class Give> void take_rates(const Buffer<T> &rates, const Index &to, Give give) const {
        const T *rate = rates.get();
        each(to, 0, to.n, [=](int64_t i, int32_t cell, double x) {
            give(i, value_at(rate + int64_t(kNodes) * cell, T(x)));
        });
    }

  private:
    // A linear function of the score as one of the offset: its value in the middle of a cell, and its rise.
    template <class Linear> std::pair<double, double> over_cell(int64_t c, Linear linear) const {
        const double low = points.low + c * width, high = low + width;
        return {linear(low + width / 2), (linear(high) - linear(low)) / 2};
    }
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

    // From the moments of each cell, the polynomials of F and its slope: what lies below, then what lies above.
    void sum_over_cells() {
        const Tables<T> &table = tables<T>();
        for (int up = 1; up >= 0; up--) {
            Terms<T> sums[2] = {};
            double above[2] = {};
            for (int64_t step = 0; step < 2 * cells; step++) {
                const int64_t c = up ? step / 2 : cells - 1 - step / 2, s = step % 2;
                const Nodes &moment = moments[2 * c + s];
                const bool filled = moment[0] > 0;
                if (wanted[c]) {
                    Nodes count = up ? Nodes{} : counts[2 * c + s];
                    for (int k = 0; k < Orders<T>::terms; k++)
                        count += (up ? table.from_below[k] : table.from_above[k]) * sums[s][k];
                    for (int p = 0; p < kNodes && filled && !up; p++) count += table.within[p] * moment[p];
                    count[0] += above[s];
                    counts[2 * c + s] = count;
                }
                sums[s] *= table.decay;
                if (c % 8 == 7) flush(sums[s]);
                if (!filled) continue;
                for (int p = 0; p < kNodes; p++) sums[s] += (up ? table.to_above[p] : table.to_below[p]) * moment[p];
                if (!up) above[s] += moment[0];
            }
        }
        for (int64_t c = 0; c < 2 * cells; c++)
            for (int p = 1; p <= kNodes; p++) slopes[c][p - 1] = p < kNodes ? -2 * p / Orders<T>::width * counts[c][p] : 0;
    }

    const Points<T> &points;
    double width, scale;  // of a cell, in scores; 1 / width
    int64_t cells;
    Buffer<Nodes> moments, weights, counts, slopes;  // [cells, 2 sets]
    std::vector<uint8_t> wanted;                        // the cells whose sums are asked for
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
        counts = Buffer<double>(2 * n), slopes = Buffer<double>(2 * n);
        asked = Buffer<uint8_t>(n), decay = Buffer<double>(n + kBlock);
        for (int64_t i = 0; i < n + kBlock; i++) {  // e^-(distance to the next row / temperature)
            const double gap = i + 1 < n ? double(sorted.score(i + 1)) - double(sorted.score(i)) : INFINITY;
            decay[i] = std::min(gap / points.temperature * M_LOG2E, 1020.0);
        }
        for (int64_t i = 0; i < n; i += kLanes<double>) {
            const Vec<double> x = load(decay.get() + i);
            store(decay.get() + i, x < 1000.0 ? exp2(-x) : Vec<double>{});
        }
    }

    template <bool kCounts = true, class Source, class Sets>
    void solve(const Index &from, Source source, const Index &, Sets sets) {
        const Tables<T> &table = tables<T>();
        constexpr int N = Orders<T>::terms;
        const int32_t *listed = numbers(from);
        int64_t at = 0;
        auto pass = [&](auto up) {  // from below upwards, then from above down
            Terms<T> passing[2] = {};
            double passed[2] = {};
            for (int64_t step = 0; step < n; step++) {
                const int64_t i = up ? step : n - 1 - step, j = sorted.item[i].row;
                if (up) asked[i] = uint8_t(sets(j));
                auto keep = [&](const Terms<T> &sum, double above) __attribute__((always_inline)) {
                    const double slope = hsum(sum * table.slope), count = kCounts ? hsum(sum * table.value) : 0;
                    at -= !up;
                    slopes[at] = up ? slope : slopes[at] + slope;
                    if (kCounts) counts[at] = up ? count : counts[at] + above - count;
                    at += up;
                };
                // Each set by name, not by a number: then the sums stay in registers.
                if (up && asked[i] & 1) keep(passing[0], passed[0]);
                if (asked[i] & 2) keep(passing[1], passed[1]);
                if (!up && asked[i] & 1) keep(passing[0], passed[0]);
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
        };
        pass(std::true_type()), pass(std::false_type());
    }
    template <class Give> void take(const Index &to, int set, Give give) {
        const int32_t *listed = numbers(to);
        int64_t at = 0;
        for (int64_t i = 0; i < n; i++)
            for (int s = 0; s < 2 && asked[i]; s++) {
                if (!(asked[i] >> s & 1)) continue;
                const int64_t k = s != set ? -1 : listed ? listed[i] : to.number(sorted.item[i].row);
                if (k >= 0) give(k, counts[at], slopes[at]);
                at++;
            }
    }

  private:
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
    Buffer<double> counts, slopes;  // at these rows, one behind the other
};
