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
    const double rank = q + std::max(n, 0.0), part = weight / all, rate = part / rank;
    return {part * (q / rank), rate * (std::max(n, 0.0) / rank), rate * (q / rank)};
}

// Memory that the classes of a call use one after the other.
struct AveragePrecisionRoom {
    std::vector<int32_t> positives;
    std::vector<double> own;  // what each positive's gradient has beside the sum of slopes at it
    std::vector<Precision> precision;
    Buffer<double> pairs;
    int64_t pair_rows = -1;
};

template <class T> std::vector<int32_t> &find_positives(const Class<T> &of, std::vector<int32_t> &positives) {
    positives.clear();
    for (int64_t j = 0; j < of.count; j += 8) {
        uint64_t eight = 0;
        memcpy(&eight, of.positive + j, std::min<int64_t>(8, of.count - j));
        for (int64_t r = j; eight; r++, eight >>= 8)
            if ((eight & 255) && of.weight_of(r) > 0) positives.push_back(int32_t(r));
    }
    return positives;
}

// In U: the scores' type, or double where weights are too unlike for float.
template <class U, class T> double precision_by_pairs(const Class<T> &of, AveragePrecisionRoom &room) {
    const std::vector<int32_t> &positives = room.positives;
    const int64_t n = of.count, p = positives.size(), width = padded<U>(n), live = of.gradient ? of.live : 0;
    const int64_t live_width = padded<U>(live), p_width = padded<U>(p);
    if (room.pair_rows < n) room.pairs = Buffer<double>(8 * (n + 16)), room.pair_rows = n;
    U *score = reinterpret_cast<U *>(room.pairs.get()), *w = score + width, *slope = w + width, *sum = slope + width;
    U *p_score = sum + width, *p_w = p_score + p_width, *p_slope = p_w + p_width, *p_sum = p_slope + p_width;
    const double scale = unit_of(of.stats.weight_high), rate = M_LOG2E / of.temperature;
    if (of.weight) {
        for (int64_t j = 0; j < n; j++) score[j] = of.weight[j] > 0 ? U(of.score[j]) : U(of.stats.low);
        for (int64_t j = 0; j < n; j++) w[j] = U(of.weight[j] * scale);
    } else {
        std::copy_n(of.score, n, score), std::fill_n(w, n, U(1));
    }
    for (int64_t i = 0; i < p; i++)
        p_score[i] = score[positives[i]], p_w[i] = w[positives[i]], w[positives[i]] = 0;
    pad(score, w, n), pad(p_score, p_w, p);
    std::fill_n(sum, live_width, U(0)), std::fill_n(p_sum, p_width, U(0));
    room.own.resize(p);

    double ap = 0, moment = 0;
    for (int64_t i = 0; i < p; i++) {
        const U at = p_score[i];
        const PairSums near = pass_over(score, w, live_width, at, rate, slope);
        const PairSums far = pass_over<U>(score + live_width, w + live_width, width - live_width, at, rate, nullptr);
        const double w_i = p_w[i];
        p_w[i] = 0;  // a pair with oneself has no slope, and counts whole
        const PairSums others = pass_over(p_score, p_w, p, at, rate, p_slope);
        p_w[i] = U(w_i), p_slope[i] = 0;
        const Precision one = precision_of(others.count + w_i, near.count + far.count, w_i, of.weights.positive * scale);
        ap += one.value;
        if (!of.gradient) continue;
        add_scaled(sum, slope, -one.negatives, live_width);
        add_scaled(p_sum, p_slope, one.positives, p);
        moment += one.positives * others.moment - one.negatives * (near.moment + far.moment);
        room.own[i] = one.negatives * (near.slope + far.slope) - one.positives * others.slope;
    }
    if (!of.gradient) return ap;
    const ScaleGradient<T> through_std(of, moment / of.stats.std);
    const double inverse = 1 / of.temperature;
    for (int64_t j = 0; j < live; j++) of.gradient[j] = narrow<T>(double(w[j]) * sum[j] * inverse);
    through_std.template write<true>(0, live);
    for (int64_t i = 0; i < p; i++)
        if (const int32_t j = positives[i]; j < live)
            of.gradient[j] = narrow<T>((double(p_w[i]) * p_sum[i] + room.own[i]) * inverse + through_std.at(j));
    return ap;
}

// By Cells or a Walk.
template <class Sums, class T>
double precision_by_sums(const Class<T> &of, const Points<T> &points, AveragePrecisionRoom &room) {
    const int64_t p = room.positives.size();
    const int32_t *positives = room.positives.data();
    const Index all{nullptr, of.count, 0}, hits{positives, p, 0};
    constexpr bool kCells = std::is_same_v<Sums, Cells<T>>;
    Sums sums(points);
    std::vector<Precision> &precision = room.precision;
    std::vector<double> negatives(p), &own = room.own;
    auto own_set = [&](int64_t j) { return 1 + of.positive[j]; };
    const uint8_t *positive = of.positive;
    const T *weight = of.weight;
    sums.solve(all, [=](int64_t j, auto add) { add(positive[j], weight ? double(weight[j]) : 1.0); },
               hits, [&](int64_t j) { return 3 * of.positive[j]; });
    precision.resize(p), own.resize(p);
    sums.take(hits, 0, [&](int64_t i, double count, double slope) { negatives[i] = count, own[i] = slope; });
    sums.take(hits, 1, [&](int64_t i, double count, double slope) {
        const double w = of.weight_of(positives[i]);
        precision[i] = precision_of(count + w * (1 - Sums::kSelf), negatives[i], w, of.weights.positive);
        // The pair with oneself may be in here, and in the sums below: the two cancel.
        own[i] = precision[i].negatives * own[i] - precision[i].positives * slope;
    });
    double ap = 0, moment = 0;
    for (const Precision &one : precision) ap += one.value;
    if (!of.gradient) return ap;

    const ScaleGradient<T> still(of, 0);
    const double inverse = 1 / of.temperature;
    auto push = [&](int64_t i, auto add) { add(0, precision[i].negatives), add(1, precision[i].positives); };
    sums.template solve<false>(hits, push, all, own_set);
    sums.take(hits, 1, [&](int64_t i, double, double slope) {
        own[i] = (of.weight_of(positives[i]) * slope + own[i]) * inverse;
    });
    for (int64_t i = 0; i < p; i++) moment += own[i] * still.standardized(double(of.score[positives[i]]));
    if constexpr (kCells) {
        if (of.moves) moment -= inverse * sums.moment([&](double s) { return still.standardized(s); });
    } else if (of.moves) {
        sums.take(all, 0, [&](int64_t j, double, double slope) {
            moment -= of.positive[j] ? 0 : of.weight_of(j) * inverse * slope * still.standardized(double(of.score[j]));
        });
    }
    const ScaleGradient<T> through_std(of, moment);
    if (of.weight) std::fill_n(of.gradient, of.live, T(0));  // absent rows are not asked
    T *gradient = of.gradient;
    if constexpr (kCells) {
        const T unit = T(unit_of(of.stats.weight_high));  // a rate is as small as weights are large
        const Buffer<T> rates = sums.rates(-inverse / unit, [&](double s) {
            return of.iid ? 0 : through_std.rate * through_std.standardized(s) / unit;
        });
        in_chunks(of.threads, of.live, 16384, [&](int64_t begin, int64_t end) {
            sums.take_rates(rates, {nullptr, end - begin, begin},
                            [=](int64_t i, T rate) { gradient[begin + i] = weight ? weight[begin + i] * unit * rate : rate; });
        });
    } else {
        sums.take(all, 0, [&](int64_t j, double, double slope) {
            if (j < of.live) gradient[j] = narrow<T>(of.weight_of(j) * slope * -inverse);
        });
    }
    if (!kCells || of.iid) through_std.template write<true>(0, of.live);
    for (int64_t i = 0; i < p && positives[i] < of.live; i++)
        of.gradient[positives[i]] = narrow<T>(own[i] + through_std.at(positives[i]));
    return ap;
}

template <class T> double average_precision_of(const Class<T> &of, AveragePrecisionRoom &room) {
    const Statistics &stats = of.stats;
    const int64_t n = of.count, p = find_positives(of, room.positives).size();
    const double range = (stats.high - stats.low) / of.temperature / Orders<T>::width;
    // Whether a pair's distance times 1 / temperature stays a number.
    const bool moderate = sizeof(T) == 8 || (of.temperature > 1e-30 && of.temperature < 1e30);
    const bool cells = moderate && cells_pay(range, n);
    const double linear = cells ? kCellCost * range + kCellRowCost * n : kWalkRowCost * n;
    const bool alike = stats.weight_high < 1e6 * stats.weight_low;  // else float loses the light ones' digits
    if (n <= 65536 && kPairCost * p * (n + p) < linear)  // they take room by row
        return moderate && alike && p * n > 2048 ? precision_by_pairs<T>(of, room) : precision_by_pairs<double>(of, room);
    const Points<T> points{of.score, of.weight, n, stats.low, stats.high, of.temperature, of.threads};
    return cells ? precision_by_sums<Cells<T>>(of, points, room) : precision_by_sums<Walk<T>>(of, points, room);
}
template <class T> int average_precision(const Pool *pool) {
    return each_class<AveragePrecisionRoom>(*pool, [&](int64_t c, int threads, AveragePrecisionRoom &room) {
        const Class<T> of(*pool, c, threads, false);
        if (of.defined()) of.value = average_precision_of(of, room);
    });
}
