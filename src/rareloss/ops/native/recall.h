// Soft recall above a threshold that moves with the scores.
//
// The threshold is the root of sum_j c_j sigmoid((s_j - threshold) / t) = q sum_j c_j over the counted rows; recall is
// the mean over positives, weighted, of sigmoid((s_i - threshold) / t). By the implicit function theorem the threshold
// moves with row j by c_j sigmoid'_j / sum_k c_k sigmoid'_k.
//
// The root is looked for from `start`, the score of the hard quantile: the counted weight at and above it, less the
// target, is the surplus, and the equation is surplus + (soft weight of lower rows) = (weight that upper rows lack).
// These are sums of positive terms: no digit is lost where the root lies in a gap, far from every row. It lies within
// 200 temperatures of start or of the next row below, as e^-200 is less than any share of the weight but rounding.
#pragma once

#include <array>

#include "select.h"

// What rows beyond the window may move the root by, and the last step, whose error is cubed; temperatures.
template <class T> constexpr double kNeglected = sizeof(T) == 4 ? 1e-7 : 1e-15;
template <class T> constexpr double kLastStep = sizeof(T) == 4 ? 4e-3 : 3e-5;
constexpr double kRounding = 1e-12;    // a share of the weight this close to a cumulative sum is that sum
constexpr double kReach = 200;         // temperatures: see above
constexpr int64_t kSumPart = 1 << 16;  // rows that one thread sums at a time

// The threshold less start. In a wide gap every slope underflows while their ratios stay: then the slopes are those of
// its two sides, a half each, by the sums of c exp(-distance / t) over a side.
struct Root {
    double at = 0, slope = 0;
    bool found = false, in_wide_gap = false;
    double gap = 0, lower = 0, upper = 0;
};

// The rows near the threshold, and all positives.
template <class T> struct Near {
    using V = Vec<double>;
    SelectRoom select;
    Room<T> score, iid, hit;  // of row select.index[i]: score; weight where it is iid; weight where it is positive
    int64_t n = 0;
    int threads = 1;
    bool negatives_only = false;
    double start = 0, temperature = 1, unit = 1;  // distances are in `unit`, temperature too
    double above = 0, below = 0, up = 0, down = 0;  // counted weight beyond the window; it reaches so far from start

    // Some rows side by side. apart: score less start; x: score less root, in t log 2; the sigmoids of -|x| and |x|.
    struct Some { V score, apart, x, lesser, greater, iid, counted, hit; };
    Some some(int64_t i, double root) const {
        Some rows;
        rows.score = wide<kLanes<double>>(score.get() + i).v[0];
        rows.iid = wide<kLanes<double>>(iid.get() + i).v[0];
        rows.hit = wide<kLanes<double>>(hit.get() + i).v[0];
        rows.counted = ((rows.hit > 0) & (V{} < (negatives_only ? 1.0 : 0.0))) ? V{} : rows.iid;
        rows.apart = (rows.score - start) * unit;
        rows.x = (rows.apart - root) * (M_LOG2E / temperature);
        const V e = exp2(vmax(rows.x < 0 ? rows.x : -rows.x, V{} - 1000.0));
        rows.greater = 1.0 / (1.0 + e);
        rows.lesser = e * rows.greater;
        return rows;
    }
    // sums[k] over all rows of what add(some, sums) adds.
    template <size_t K, class Add> std::array<double, K> sum(double root, Add add) const {
        const int64_t parts = (n + kSumPart - 1) / kSumPart;
        std::vector<std::array<double, K>> of_part(parts);
        parallel(n < 4 * kSumPart ? 1 : threads, parts, [&](int64_t part) {
            std::array<V, K> sums{};
            const int64_t end = std::min(n, (part + 1) * kSumPart);
            for (int64_t i = part * kSumPart; i < end; i += kLanes<double>) add(some(i, root), sums);
            for (size_t k = 0; k < K; k++) of_part[part][k] = hsum(sums[k]);
        });
        std::array<double, K> all{};
        for (const auto &part : of_part) for (size_t k = 0; k < K; k++) all[k] += part[k];
        return all;
    }
    // Slopes of counted rows, in units of 1 / t; in a wide gap, of 1 / t and their sum.
    V pull(const Some &rows, const Root &root) const {
        if (!root.in_wide_gap) return rows.counted * rows.lesser * rows.greater;
        const V beyond = rows.apart < 0 ? rows.apart + root.gap : -rows.apart;
        const V tail = exp2(vmin(vmax(beyond * (M_LOG2E / temperature), V{} - 1000.0), V{}));
        return rows.counted * tail / (rows.apart < 0 ? V{} + 2 * root.lower : V{} + 2 * root.upper);
    }

    void fill(const Counted<T> &of, double reach, double total);
    Root newton(double surplus, double gap, double target, double rest) const;
    Root find_root(double surplus, double target, double total) const;
    double neglected(const Root &root) const;
};

// Gathers what lies within `reach` of start.
template <class T> void Near<T>::fill(const Counted<T> &of, double reach, double total) {
    const T low = T(start - reach / unit), high = T(start + reach / unit);
    n = gather<true>(of, low, high, threads, select.index, &above);
    for (Room<T> *room : {&score, &iid, &hit}) room->need(n + 16);
    parallel(n < 4 * kSumPart ? 1 : threads, (n + kSumPart - 1) / kSumPart, [&](int64_t part) {
        for (int64_t i = part * kSumPart; i < std::min(n, (part + 1) * kSumPart); i++) {
            const int64_t row = select.index[i];
            const T weight = of.weight ? of.weight[row] : T(1);
            score[i] = of.score[row];
            iid[i] = !of.iid || of.iid[row] ? weight : T(0);
            hit[i] = of.positive[row] ? weight : T(0);
        }
    });
    for (int64_t i = n; i < n + 16; i++) score[i] = T(start), iid[i] = hit[i] = 0;
    up = (double(high) - start) * unit;
    down = (start - double(low)) * unit;
    below = total - above - sum<1>(0, [](const Some &rows, auto &sums) { sums[0] += rows.counted; })[0];
    if (std::isinf(down) || below <= 1e-15 * total) below = 0;  // what rounding leaves of nothing
}

// Halley's steps for the log-odds of the share above where rows are near (exact for equal scores), else Newton's for
// the logarithm of the two sides' ratio (exact in a gap); or bisection.
template <class T> Root Near<T>::newton(double surplus, double gap, double target, double rest) const {
    double low = -gap - kReach * temperature, high = kReach * temperature;
    Root root;
    root.found = true;
    for (int step = 0; step < 200; step++) {
        const auto [lower, lower_slope, upper, upper_slope, bend] = sum<5>(root.at, [](const Some &rows, auto &sums) {
            const auto is_lower = rows.apart < 0;
            const V tail = rows.counted * ((rows.x < 0) == is_lower ? rows.lesser : rows.greater);
            const V slope = rows.counted * rows.lesser * rows.greater, zero{};
            sums[0] += is_lower ? tail : zero, sums[1] += is_lower ? slope : zero;
            sums[2] += is_lower ? zero : tail, sums[3] += is_lower ? zero : slope;
            sums[4] += slope * (rows.greater - rows.lesser) * (rows.x < 0 ? V{} + 1.0 : V{} - 1.0);
        });
        const double excess = surplus + lower - upper;
        root.slope = lower_slope + upper_slope;
        if (excess == 0) return root;
        (excess > 0 ? low : high) = root.at;
        double move;  // in temperatures
        const bool steep = root.slope > 1e-3 * std::min(target, rest);
        if (steep) {
            const double above_it = target + excess, below_it = rest - excess, all = target + rest;
            const double odds = std::log1p(excess / target) - std::log1p(-excess / rest);
            const double straight = odds * above_it * below_it / (root.slope * all);  // Newton's step
            const double bent = root.slope * (below_it - above_it) / (above_it * below_it) - bend / root.slope;
            move = straight / std::min(std::max(1 + straight * bent / 2, .5), 1.5);
        } else {
            const double gained = surplus + lower;
            move = std::log(gained / upper) / (lower_slope / gained + upper_slope / upper);
        }
        const double next = root.at + temperature * move;
        const bool last = std::fabs(move) <= std::pow(kLastStep<T>, steep ? 1.0 : 1.5);  // Newton's error is squared
        if (last) root.at = std::min(std::max(next, low), high);
        if (last || high - low <= 1e-10 * temperature) return root;
        root.at = next > low && next < high && (step < 12 || step % 2 == 0) ? next : low + (high - low) / 2;
    }
    return root;
}

template <class T> Root Near<T>::find_root(double surplus, double target, double total) const {
    const double rest = std::max(total - target, 1e-16 * total);
    if (std::fabs(surplus) > kRounding * target) return newton(surplus, 0, target, rest);
    // The share falls between two rows, and the root into the gap between them.
    Root root;
    root.gap = std::numeric_limits<double>::infinity();
    V nearest = V{} + root.gap;
    for (int64_t i = 0; i < n; i += kLanes<double>) {
        const Some rows = some(i, 0);
        nearest = vmin(nearest, ((rows.apart < 0) & (rows.counted > 0)) ? -rows.apart : V{} + root.gap);
    }
    for (int lane = 0; lane < kLanes<double>; lane++) root.gap = std::min(root.gap, double(nearest[lane]));
    if (root.gap > down && below > 0) return root;  // the next row lies beyond the window
    if (std::isinf(root.gap)) return newton(rest, 0, target, rest);
    if (root.gap <= 2 * kReach * temperature) return newton(0, root.gap, target, rest);
    root.found = root.in_wide_gap = true;
    root.lower = root.upper = .5;
    const auto [lower, upper] = sum<2>(0, [&](const Some &rows, auto &sums) {
        sums[0] += rows.apart < 0 ? pull(rows, root) : V{}, sums[1] += rows.apart < 0 ? V{} : pull(rows, root);
    });
    root.lower = lower;
    root.upper = upper;
    root.at = (temperature * std::log(lower / upper) - root.gap) / 2;
    return root;
}

// By how much the rows beyond the window move the root at most, in temperatures.
template <class T> double Near<T>::neglected(const Root &root) const {
    auto tail = [&](double weight, double far) { return weight > 0 ? weight * std::exp(-far / temperature) : 0; };
    if (root.in_wide_gap) return tail(above, up) / root.upper + tail(below, down - root.gap) / root.lower;
    return (tail(above, up - root.at) + tail(below, down + root.at)) / root.slope;
}

// The value's gradient, in units of 1 / t: p_j z_j - c_j z_j D / S with z the slopes, D = sum p z, S = sum c z. Rows
// that are positive and counted, so that p = c, are in both sums; without them p_j z_j (S - D) / S keeps its digits.
template <class T> struct RecallGradient {
    using V = Vec<double>;
    using Some = typename Near<T>::Some;
    const Near<T> &near;
    const Root &root;
    double found, share, share_of_both;  // the soft weight of positives above; D / S; (S - D) / S
    double alone;                        // the part of the slopes whose rows are in one sum
    double moment;                       // the sum of the gradient times the distance from start

    RecallGradient(const Near<T> &near, const Root &root) : near(near), root(root) {
        const auto sums = near.template sum<8>(root.at, [&](const Some &rows, auto &to) {
            const V hit = rows.hit * rows.lesser * rows.greater, pull = near.pull(rows, root), zero{};
            const V hit_alone = in_both(rows) ? zero : hit, pull_alone = in_both(rows) ? zero : pull;
            to[0] += rows.hit * (rows.x < 0 ? rows.lesser : rows.greater);
            to[1] += hit, to[2] += pull, to[3] += hit_alone, to[4] += pull_alone;
            to[5] += (hit - hit_alone) * rows.apart, to[6] += hit_alone * rows.apart;
            to[7] += pull_alone * rows.apart;
        });
        found = sums[0], share = sums[1] / sums[2], share_of_both = (sums[4] - sums[3]) / sums[2];
        alone = (sums[3] + sums[4]) / sums[2];
        moment = sums[5] * share_of_both + sums[6] - share * sums[7];
    }
    auto in_both(const Some &rows) const {  // in a wide gap z differs between the sums
        return (rows.counted > 0) & (rows.hit > 0) & (V{} < (root.in_wide_gap ? 0.0 : 1.0));
    }
    // The gradient of the live rows, with that through the standard deviation. A part of the rows at a time stays in a core's cache.
    void write(double factor, const ScaleGradient<T> &through_std) const {
        const int32_t *index = near.select.index.get();
        T *gradient = through_std.of.gradient;
        in_chunks(near.threads, through_std.of.live, kGatherPart, [&](int64_t begin, int64_t end) {
            through_std.template write<false>(begin, end);
            const int64_t last = std::lower_bound(index, index + near.n, end) - index;
            for (int64_t i = std::lower_bound(index, index + near.n, begin) - index; i < last; i += kLanes<double>) {
                const Some rows = near.some(i, root.at);
                const V hit = rows.hit * rows.lesser * rows.greater;
                const V slope = in_both(rows) ? hit * share_of_both : hit - near.pull(rows, root) * share;
                const V sum = slope * factor + rows.iid * through_std.rate * through_std.standardized(rows.score);
                for (int64_t k = 0; k < std::min<int64_t>(last - i, kLanes<double>); k++)
                    gradient[index[i + k]] = narrow<T>(sum[k]);
            }
        });
    }
};

template <class T>
void recall_of_class(const Class<T> &all, double quantile, bool among_negatives, double *threshold, Near<T> &near) {
    const Counted<T> of{all, among_negatives};
    const Statistics &stats = all.stats;
    const double total = among_negatives ? all.weights.negative : stats.iid_weight, target = quantile * total;
    const bool defined = all.defined();
    if (threshold) *threshold = stats.finite ? 0 : NAN;
    if (!stats.finite || !(total > 0) || !(defined || threshold)) return;

    near.temperature = all.temperature;
    near.unit = near.temperature < 1e-270 ? 0x1p+200 : 1.0;  // else 1 / temperature might be infinite
    near.temperature *= near.unit;
    const Edge edge = find_edge(of, target * (1 - kRounding), total, near.threads, near.select);
    near.start = edge.score;
    near.negatives_only = among_negatives;
    double reach = near.temperature * (3 - std::log(kNeglected<T>) - std::log(std::min(quantile, 1 - quantile)));
    for (int attempt = 0;; attempt++) {
        near.fill(of, reach, total);
        const Root root = near.find_root(edge.above + edge.tied - target, target, total);
        const RecallGradient<T> slopes(near, root);
        const double missed = root.found ? near.neglected(root) : NAN;
        const double allowed = std::max(kNeglected<T> * std::min(slopes.alone, 1.0), 1e-16);
        if (!(missed <= allowed) && attempt < 2) {  // all rows, unless it is known how far the neglected have to lie
            const bool known = attempt == 0 && missed > 0;
            reach += known ? near.temperature * (1 + std::log(missed / allowed)) : 1 / 0.0;
            continue;
        }
        if (threshold) *threshold = edge.score + root.at / near.unit;
        if (defined) all.value = slopes.found / all.weights.positive;
        if (!defined || !all.gradient) return;
        const double factor = near.unit / near.temperature / all.weights.positive;
        slopes.write(factor, ScaleGradient<T>(all, factor * (slopes.moment / near.unit / stats.std)));
        return;
    }
}

template <class T> int recall(const Pool *pool, double quantile, int among_negatives, double *threshold) {
    return each_class<Near<T>>(*pool, [&](int64_t c, int threads, Near<T> &near) {
        near.threads = threads;
        const Class<T> of(*pool, c, threads, true);
        recall_of_class<T>(of, quantile, among_negatives != 0, threshold ? threshold + c : nullptr, near);
    });
}
