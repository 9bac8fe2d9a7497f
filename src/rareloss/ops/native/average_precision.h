// Smooth-AP (Brown et al., ECCV 2020) and its gradient, class by class.
//
// AP = sum_i (w_i / P) Q_i / (Q_i + N_i) over the positives; Q_i and N_i are the soft counts of positives and negatives
// above i, i itself counting whole. d AP / d score needs, at every row, one more sum of slopes, over the positives with
// the factors that `Precision` holds: (Q, N) -> factors -> slopes, whichever way the sums are taken.
#pragma once

#include <numeric>

#include "pairs.h"

struct Precision {
    double value;                 // this positive's part of AP
    double positives, negatives;  // d value / d Q_i, and -(d value / d N_i)
};
inline Precision precision_of(double q, double n, double weight, double all) {
    const double rank = q + std::max(n, 0.0), share = weight / all, rate = share / rank;
    return {share * (q / rank), rate * (std::max(n, 0.0) / rank), rate * (q / rank)};
}

// One class, what is known of it, and room that the classes of a call share.
template <class T> struct AveragePrecision {
    Rows<T> rows;
    Statistics stats;
    double temperature = 0, all_positives = 0;  // temperature in scores
    bool in_std = false;
    int threads = 1;
    T *gradient = nullptr;
    std::vector<int32_t> positives;
    std::vector<double> own;  // what each positive's gradient has beside the sum of slopes at it
    Buffer<double> room;
    int64_t room_rows = -1;

    double weight(int64_t j) const { return rows.weight ? double(rows.weight[j]) : 1.0; }

    void find_positives() {
        positives.clear();
        all_positives = 0;
        auto add = [&](int64_t j) {
            if (!(weight(j) > 0)) return;
            positives.push_back(int32_t(j));
            all_positives += weight(j);
        };
        int64_t j = 0;
        for (; j + 8 <= rows.count; j += 8) {
            uint64_t eight;
            memcpy(&eight, rows.positive + j, 8);
            if (eight == 0) continue;
            for (int64_t r = j; r < j + 8; r++) if (rows.positive[r]) add(r);
        }
        for (; j < rows.count; j++) if (rows.positive[j]) add(j);
    }

    // The temperature in standard deviations moves with the scores. `moment` is sum g (score - mean) over the pool.
    double pull_of(double moment) const { return moment / stats.std / stats.iid_weight / stats.std; }
    bool pulls() const { return in_std && gradient && stats.varies; }
    double pulled(int64_t j, double pull) const {
        const double w = weight(j);
        return w > 0 && (!rows.iid || rows.iid[j]) ? w * pull * (double(rows.score[j]) - stats.mean) : 0;
    }
    void subtract_pull(double moment) const {
        if (!pulls()) return;
        const double pull = pull_of(moment);
        for (int64_t j = 0; j < rows.live; j++) gradient[j] = narrow<T>(gradient[j] - pulled(j, pull));
    }

    template <class U> double by_pairs();
    double by_cells();
    double by_walk();
    double value(const Pool &pool, int64_t c, int threads_here);

  private:
    Sorted<T> sorted_rows(int64_t *n) const;
    void finish_cells(const Line &line, const Nodes<T> *weights, const Nodes<T> *counts, const uint8_t *filled);
    void fill_cells(const Rows<T> &some, const Line &line, Nodes<T> *moments, int64_t begin, int64_t end) const;
    void slopes_in_cells(const Rows<T> &some, const Line &line, const T *slope, T *to, int64_t begin,
                         int64_t end) const;
};

// ---------------------------------------------------------------- few pairs

// In U: the scores' type, or double where weights are too unlike for float.
template <class T> template <class U> double AveragePrecision<T>::by_pairs() {
    const int64_t n = rows.count, p = positives.size(), width = padded<U>(n), live = gradient ? rows.live : 0;
    const int64_t live_width = std::min(padded<U>(live), width), p_width = padded<U>(p);
    if (room_rows < n) room = Buffer<double>(8 * (n + 16)), room_rows = n;
    U *score = reinterpret_cast<U *>(room.get()), *w = score + width, *slope = w + width, *sum = slope + width;
    U *p_score = sum + width, *p_w = p_score + p_width, *p_slope = p_w + p_width, *p_sum = p_slope + p_width;
    const double scale = weight_scale(stats.weight_high), rate = M_LOG2E / temperature;
    if (rows.weight) {
        for (int64_t j = 0; j < n; j++) score[j] = rows.weight[j] > 0 ? U(rows.score[j]) : U(stats.low);
        for (int64_t j = 0; j < n; j++) w[j] = U(rows.weight[j] * scale);
    } else {
        std::copy_n(rows.score, n, score), std::fill_n(w, n, U(1));
    }
    for (int64_t i = 0; i < p; i++)
        p_score[i] = score[positives[i]], p_w[i] = w[positives[i]], w[positives[i]] = 0;
    pad(score, w, n), pad(p_score, p_w, p);
    std::fill_n(sum, live_width, U(0)), std::fill_n(p_sum, p_width, U(0));
    own.resize(p);

    double ap = 0, moment = 0;
    for (int64_t i = 0; i < p; i++) {
        const U at = p_score[i];
        const PairSums near = pass_over(score, w, live_width, at, rate, slope);
        const PairSums far = pass_over<U>(score + live_width, w + live_width, width - live_width, at, rate, nullptr);
        const double w_i = p_w[i];
        p_w[i] = 0;  // a pair with oneself has no slope, and counts whole
        const PairSums others = pass_over(p_score, p_w, p, at, rate, p_slope);
        p_w[i] = U(w_i), p_slope[i] = 0;
        const Precision one = precision_of(others.count + w_i, near.count + far.count, w_i, all_positives * scale);
        ap += one.value;
        if (!gradient) continue;
        add_scaled(sum, slope, -one.negatives, live_width);
        add_scaled(p_sum, p_slope, one.positives, p);
        moment += one.positives * others.moment - one.negatives * (near.moment + far.moment);
        own[i] = one.negatives * (near.slope + far.slope) - one.positives * others.slope;
    }
    if (!gradient) return ap;
    const double pull = pulls() && !rows.iid ? pull_of(moment) : 0, inverse = 1 / temperature, lean = pull / scale;
    for (int64_t j = 0; j < live; j++)
        gradient[j] = narrow<T>(double(w[j]) * (sum[j] * inverse - lean * (double(score[j]) - stats.mean)));
    for (int64_t i = 0; i < p; i++)
        if (const int32_t j = positives[i]; j < live)
            gradient[j] = narrow<T>((double(p_w[i]) * p_sum[i] + own[i]) * inverse - pulled(j, pull));
    if (rows.iid) subtract_pull(moment);
    return ap;
}

// ---------------------------------------------------------------- cells

template <class T>
void AveragePrecision<T>::fill_cells(const Rows<T> &some, const Line &line, Nodes<T> *moments, int64_t begin,
                                     int64_t end) const {
    constexpr int N = kBlock;
    int32_t cell[N];
    double offset[N];
    int64_t j = begin;
    for (; j + N <= end; j += N) {
        Block score = wide<N>(some.score + j), w{};
        if (some.weight) {
            w = wide<N>(some.weight + j);
            RARELOSS_EACH score.v[i] = w.v[i] > 0.0 ? score.v[i] : Vec<double>{} + line.low;
        }
        line.place(score, cell, offset);
        for (int r = 0; r < N; r++) {
            Nodes<T> row = powers<Orders<T>::nodes>(offset[r]);
            if (some.weight) row = row * w[r];
            moments[2 * cell[r] + some.positive[j + r]] += row;
        }
    }
    if (j < end) fill_cells(PaddedBlock<T>(some, j, end).rows(), line, moments, 0, N);
}

// w_j times the polynomial `slope` [cells, nodes] of row j's cell.
template <class T>
void AveragePrecision<T>::slopes_in_cells(const Rows<T> &some, const Line &line, const T *slope, T *to, int64_t begin,
                                          int64_t end) const {
    constexpr int N = kBlock, n = Orders<T>::nodes;
    int32_t cell[N];
    double offset[N];
    int64_t j = begin;
    for (; j + N <= end; j += N) {
        Block score = wide<N>(some.score + j);
        if (some.weight) {
            const Block w = wide<N>(some.weight + j);
            RARELOSS_EACH score.v[i] = w.v[i] > 0.0 ? score.v[i] : Vec<double>{} + line.low;
        }
        line.place(score, cell, offset);
        for (int r = 0; r < N; r++) {
            const T *c = slope + int64_t(n) * cell[r], x = T(offset[r]), x2 = x * x, x4 = x2 * x2;
            T sum = 0;
            for (int q = n - 8; q >= 0; q -= 8) {
                const T low = (c[q] + c[q + 1] * x) + (c[q + 2] + c[q + 3] * x) * x2;
                const T high = (c[q + 4] + c[q + 5] * x) + (c[q + 6] + c[q + 7] * x) * x2;
                sum = (low + high * x4) + sum * (x4 * x4);
            }
            to[j + r] = sum;
        }
        if (some.weight) for (int r = 0; r < N; r++) to[j + r] *= some.weight[j + r];
    }
    if (j == end) return;
    T last[N];
    slopes_in_cells(PaddedBlock<T>(some, j, end).rows(), line, slope, last, 0, N);
    std::copy_n(last, end - j, to + j);
}

template <class T> double AveragePrecision<T>::by_cells() {
    constexpr int n = Orders<T>::nodes;
    const Line line = line_of(stats.low, stats.high, temperature);
    const int64_t cells = line.cells, size = 2 * cells, p = positives.size();
    Buffer<Nodes<T>> moments(size * threads), pushes(size * threads), counts(size);  // [cells, negatives and positives]
    auto cleared = [&](const Buffer<Nodes<T>> &all, int64_t part) {
        std::fill_n(all.get() + part * size, size, Nodes<T>{});
        return all.get() + part * size;
    };
    auto summed = [&](const Buffer<Nodes<T>> &all) {
        for (int64_t i = size; i < size * threads; i++) all[i % size] += all[i];
    };
    parallel(threads, threads, [&](int64_t part) {
        fill_cells(rows, line, cleared(moments, part), rows.count * part / threads, rows.count * (part + 1) / threads);
    });
    summed(moments);
    std::vector<uint8_t> filled(cells), with_positive(cells);
    for (int64_t c = 0; c < cells; c++)
        filled[c] = moments[2 * c][0] > 0 || moments[2 * c + 1][0] > 0, with_positive[c] = moments[2 * c + 1][0] > 0;
    soft_counts_of_cells<T>(moments.get(), counts.get(), filled.data(), with_positive.data(), cells);

    std::vector<double> ap(threads);
    own.resize(p);
    parallel(threads, threads, [&](int64_t part) {
        Nodes<T> *push = cleared(pushes, part);
        double x;
        for (int64_t i = p * part / threads; i < p * (part + 1) / threads; i++) {
            const double w = weight(positives[i]);
            const int64_t c = 2 * line.place(rows.score[positives[i]], &x);
            const double above = count_at<T>(counts[c + 1], x) + w / 2;
            const Precision one = precision_of(above, count_at<T>(counts[c], x), w, all_positives);
            ap[part] += one.value;
            if (!gradient) continue;
            // The pair with oneself is in here, and in the sums of pushes below: the two cancel.
            own[i] = one.negatives * slope_at<T>(counts[c], x) - one.positives * slope_at<T>(counts[c + 1], x);
            const Nodes<T> power = powers<n>(x);
            push[c] += power * one.negatives, push[c + 1] += power * one.positives;
        }
    });
    if (gradient) {
        summed(pushes);
        soft_counts_of_cells<T>(pushes.get(), counts.get(), with_positive.data(), filled.data(), cells);
        finish_cells(line, moments.get(), counts.get(), filled.data());
    }
    return std::accumulate(ap.begin(), ap.end(), 0.0);
}

// The gradient from the sums of slopes: the negatives' as one polynomial a cell, which takes up the temperature's part.
template <class T>
void AveragePrecision<T>::finish_cells(const Line &line, const Nodes<T> *weights, const Nodes<T> *counts,
                                       const uint8_t *filled) {
    constexpr int n = Orders<T>::nodes;
    const int64_t p = positives.size();
    auto from_mean = [&](int64_t c, double offset) {
        return line.low + (c + (1 + offset) / 2) * temperature - stats.mean;
    };
    std::vector<double> moments(threads);
    parallel(threads, threads, [&](int64_t part) {
        double x;
        for (int64_t i = p * part / threads; i < p * (part + 1) / threads; i++) {
            const int32_t j = positives[i], c = line.place(rows.score[j], &x);
            own[i] = (weight(j) * slope_at<T>(counts[2 * c + 1], x) + own[i]) / temperature;
            moments[part] += own[i] * (double(rows.score[j]) - stats.mean);
        }
    });
    double moment = std::accumulate(moments.begin(), moments.end(), 0.0);
    for (int64_t c = 0; c < line.cells && pulls(); c++)
        for (int i = 0; i < n && filled[c]; i++) {
            const double offset = tables<T>().offset[i];
            moment -= weights[2 * c][i] * slope_at<T>(counts[2 * c], offset) / temperature * from_mean(c, offset);
        }
    const double pull = pulls() && !rows.iid ? pull_of(moment) : 0;
    Buffer<T> slope(line.cells * n);
    for (int64_t c = 0; c < line.cells; c++) {
        if (!filled[c]) continue;
        double coefficient[n] = {};
        for (int q = 1; q < n; q++) coefficient[q - 1] = 2 * q * counts[2 * c][q] / temperature;
        coefficient[0] -= pull * from_mean(c, 0), coefficient[1] -= pull * temperature / 2;
        for (int q = 0; q < n; q++) slope[n * c + q] = T(coefficient[q]);
    }
    constexpr int64_t kChunk = 16384;
    parallel(threads, (rows.live + kChunk - 1) / kChunk, [&](int64_t part) {
        const int64_t end = std::min((part + 1) * kChunk, rows.live);
        slopes_in_cells(rows, line, slope.get(), gradient, part * kChunk, end);
    });
    for (int64_t i = 0; i < p; i++)
        if (const int32_t j = positives[i]; j < rows.live) gradient[j] = narrow<T>(own[i] - pulled(j, pull));
    if (rows.iid) subtract_pull(moment);
}

// ---------------------------------------------------------------- scores far apart

// The rows present, sorted.
template <class T> Sorted<T> AveragePrecision<T>::sorted_rows(int64_t *n) const {
    *n = rows.count;
    if (!rows.weight) return sort_scores(rows.score, rows.count);
    std::vector<int32_t> present;
    for (int64_t j = 0; j < rows.count; j++) if (rows.weight[j] > 0) present.push_back(int32_t(j));
    *n = present.size();
    Buffer<T> score(*n);
    for (int64_t i = 0; i < *n; i++) score[i] = rows.score[present[i]];
    return sort_scores(score.get(), *n, present.data());
}

template <class T> double AveragePrecision<T>::by_walk() {
    int64_t n;
    Sorted<T> sorted = sorted_rows(&n);
    sorted.drop_spare();
    const Buffer<double> decay = decays_of(sorted, n, temperature);
    Buffer<int32_t> which(n);  // -1 for a negative; a positive's number from below
    positives.clear();
    for (int64_t i = 0; i < n; i++) {
        const int32_t j = sorted.item[i].row;
        which[i] = rows.positive[j] ? int32_t(positives.size()) : -1;
        if (rows.positive[j]) positives.push_back(j);
    }
    struct Sums { double count[2] = {}, slope[2] = {}, push[2] = {}; };  // of negatives, and of positives
    std::vector<Sums> sums(positives.size());
    auto source = [&](int64_t i, double *w) { w[which[i] >= 0] = weight(sorted.item[i].row), w[which[i] < 0] = 0; };
    auto both = [&](int64_t i) { return which[i] < 0 ? 0 : 3; };
    walk<T>(decay.get(), n, source, both, [&](int64_t i, int set, bool, double count, double slope) {
        sums[which[i]].count[set] += count, sums[which[i]].slope[set] += slope;
    });
    double ap = 0, moment = 0;
    own.resize(positives.size());
    for (size_t k = 0; k < positives.size(); k++) {
        Sums &at = sums[k];
        const double w = weight(positives[k]);
        const Precision one = precision_of(at.count[1] + w, at.count[0], w, all_positives);
        ap += one.value;
        at.push[0] = one.negatives, at.push[1] = one.positives;
        own[k] = one.negatives * at.slope[0] - one.positives * at.slope[1];
    }
    if (!gradient) return ap;
    if (rows.weight) std::fill_n(gradient, rows.live, T(0));  // absent rows are not in the walk
    Buffer<double> below(n);                                  // each row's slopes from below
    auto push = [&](int64_t i, double *w) {
        for (int set = 0; set < 2; set++) w[set] = which[i] < 0 ? 0 : sums[which[i]].push[set];
    };
    auto own_set = [&](int64_t i) { return which[i] < 0 ? 1 : 2; };
    walk<T>(decay.get(), n, push, own_set, [&](int64_t i, int set, bool up, double, double slope) {
        if (up) return void(below[i] = slope);
        const int32_t j = sorted.item[i].row;
        const double pushed = weight(j) * (below[i] + slope);
        const double g = (set ? pushed + own[which[i]] : -pushed) / temperature;
        moment += g * (double(sorted.score(i)) - stats.mean);
        if (j < rows.live) gradient[j] = narrow<T>(g);
    });
    subtract_pull(moment);
    return ap;
}

// ---------------------------------------------------------------- a class, and a pool

template <class T> double AveragePrecision<T>::value(const Pool &pool, int64_t c, int threads_here) {
    rows = rows_of<T>(pool, c), threads = threads_here, in_std = pool.in_std;
    gradient = pool.gradient ? static_cast<T *>(pool.gradient) + c * pool.live : nullptr;
    stats = statistics(rows, threads);
    find_positives();
    const int64_t n = rows.count, p = positives.size();
    int64_t negative = 0;
    while (negative < n && (rows.positive[negative] || !(weight(negative) > 0))) negative++;
    if (p == 0 || negative == n || !stats.finite) {
        if (gradient) std::fill_n(gradient, rows.live, stats.finite ? T(0) : T(NAN));
        return NAN;
    }
    temperature = std::max(pool.temperature * (in_std ? stats.std : 1), 1e-300);
    const double range = (stats.high - stats.low) / temperature;
    const bool moderate = pairs_in_range<T>(temperature), cells = moderate && cells_pay(range, n);
    const double linear = cells ? kCellCost * range + kCellRowCost * n : kWalkRowCost * n;
    const bool alike = stats.weight_high < 1e6 * stats.weight_low;  // else float loses the light ones' digits
    if (n <= 65536 && kPairCost * p * (n + p) < linear)  // they take room by row
        return moderate && alike && p * n > 2048 ? by_pairs<T>() : by_pairs<double>();
    return cells ? by_cells() : by_walk();
}

template <class T> int average_precision(const Pool *pool) {
    return guarded([&] {
        constexpr int64_t kLarge = 1 << 18;
        const bool large = pool->rows > kLarge, many = !large && pool->classes * pool->rows > kLarge;
        const int64_t parts = many ? std::min<int64_t>(pool->threads, pool->classes) : 1;
        auto classes_of_part = [&](int64_t part) {
            AveragePrecision<T> one;
            for (int64_t c = part; c < pool->classes; c += parts)
                pool->value[c] = one.value(*pool, c, large ? std::max(pool->threads, 1) : 1);
        };
        parallel(int(parts), parts, classes_of_part);
    });
}
