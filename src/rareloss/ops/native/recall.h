// Soft recall above a threshold that moves with the scores.
//
// The threshold is the root of sum_j c_j sigmoid((s_j - threshold) / t) = q sum_j c_j over the counted rows; recall is
// the weighted mean over positives of sigmoid((s_i - threshold) / t). By the implicit function theorem the threshold
// moves with row j by c_j sigmoid'_j / sum_k c_k sigmoid'_k.
//
// The root is looked for from `start`, the score of the hard quantile: the counted weight at and above it, less the
// target, is the surplus, and the equation is surplus + (soft weight of lower rows) = (weight that upper rows lack).
// Sums of positive terms, so no digit is lost where the root lies in a gap, far from every row. It lies within 200
// temperatures of start or of the next row below, as e^-200 is less than any share of the weight that is not rounding.
#pragma once

#include "select.h"

// What beyond the window may change of the threshold, and the last Newton step, whose error is squared; temperatures.
template <class T> constexpr double kNeglected = sizeof(T) == 4 ? 1e-8 : 1e-15;
template <class T> constexpr double kLastStep = sizeof(T) == 4 ? 2e-4 : 1e-6;
constexpr double kRounding = 1e-12;    // a share of the weight this close to a cumulative sum is that sum
constexpr double kReach = 200;         // temperatures: see above
constexpr int64_t kSumPart = 1 << 16;  // rows that one thread sums at a time

// The rows near the threshold, and all positives. Scores are differences from `start`.
struct Near {
    explicit Near(int64_t rows) : apart(rows + 16), counted(rows + 16), hit(rows + 16) {}
    Buffer<double> apart, counted, hit;  // score; weight in the count; weight as a positive
    int64_t n = 0;
    double above = 0, below = 0;  // counted weight beyond the window
    double up = 0, down = 0;      // the window: from start - down to start + up
};

// Lower rows: the soft weight above the root; upper rows: below it; and the slopes of both, in units of 1 / t.
struct Tails { double lower, upper, lower_slope, upper_slope; };

inline Tails tails_of(const Near &near, double root, double temperature, int threads) {
    using V = Vec<double>;
    const int64_t parts = (near.n + kSumPart - 1) / kSumPart;
    std::vector<Tails> sums(parts);
    parallel(near.n < 4 * kSumPart ? 1 : threads, parts, [&](int64_t part) {
        const double per = 1.4426950408889634 / temperature;
        const V zero{};
        V lower{}, upper{}, lower_slope{}, upper_slope{};
        for (int64_t i = part * kSumPart; i < std::min(near.n, (part + 1) * kSumPart); i += kLanes<double>) {
            const V apart = load(near.apart.get() + i), counted = load(near.counted.get() + i), x = (apart - root) * per;
            const V e = exp2(vmax(x < 0 ? x : -x, splat(-1000.0))), r = 1.0 / (1.0 + e), er = e * r;
            const V tail = counted * ((x < 0) == (apart < 0) ? er : r), slope = counted * er * r;
            lower += apart < 0 ? tail : zero;
            upper += apart < 0 ? zero : tail;
            lower_slope += apart < 0 ? slope : zero;
            upper_slope += apart < 0 ? zero : slope;
        }
        sums[part] = {hsum(lower), hsum(upper), hsum(lower_slope), hsum(upper_slope)};
    });
    Tails all{};
    for (const Tails &part : sums) {
        all.lower += part.lower;
        all.upper += part.upper;
        all.lower_slope += part.lower_slope;
        all.upper_slope += part.upper_slope;
    }
    return all;
}

// The threshold less start. In a wide gap every slope underflows while their ratios stay: then the slopes are those of
// the gap's two sides, each a half, from the logarithms.
struct Root {
    double at = 0, slope = 0;
    bool found = false, in_wide_gap = false;
    double gap = 0, lower = 0, upper = 0;  // of a wide gap: its width, and both sides' sums of c exp(-distance / t)
};

// Newton's steps, for the log-odds of the share above where rows are near (exact for equal scores), else for the
// logarithm of the two sides' ratio (exact in a gap); or bisection.
inline Root newton(const Near &near, double surplus, double gap, double target, double rest, double temperature,
                   double last_step, int threads) {
    double low = -gap - kReach * temperature, high = kReach * temperature;
    Root root;
    for (int step = 0; step < 200; step++) {
        const Tails tails = tails_of(near, root.at, temperature, threads);
        const double excess = surplus + tails.lower - tails.upper;
        root.slope = tails.lower_slope + tails.upper_slope;
        root.found = true;
        if (excess == 0) return root;
        (excess > 0 ? low : high) = root.at;
        double move = std::numeric_limits<double>::quiet_NaN();
        if (root.slope > 1e-3 * std::min(target, rest)) {
            const double odds = std::log1p(excess / target) - std::log1p(-excess / rest);
            move = odds * ((target + excess) / (target + rest)) * (rest - excess) / root.slope;
        } else {
            const double lower = surplus + tails.lower;
            move = std::log(lower / tails.upper) / (tails.lower_slope / lower + tails.upper_slope / tails.upper);
        }
        const double next = root.at + temperature * move;
        if (std::fabs(move) <= last_step) root.at = std::min(std::max(next, low), high);
        if (std::fabs(move) <= last_step || high - low <= 1e-10 * temperature) return root;
        root.at = next > low && next < high && (step < 12 || step % 2 == 0) ? next : low + (high - low) / 2;
    }
    return root;
}

inline Root find_root(const Near &near, double surplus, double target, double total, double temperature,
                      double last_step, int threads) {
    const double rest = std::max(total - target, 1e-16 * total);
    if (std::fabs(surplus) > kRounding * target)
        return newton(near, surplus, 0, target, rest, temperature, last_step, threads);
    // The share falls between two rows, and the root into the gap between them.
    Root root;
    root.gap = std::numeric_limits<double>::infinity();
    for (int64_t i = 0; i < near.n; i++)
        if (near.apart[i] < 0 && near.counted[i] > 0) root.gap = std::min(root.gap, -near.apart[i]);
    if (root.gap > near.down && near.below > 0) return root;  // the next row lies beyond the window
    if (std::isinf(root.gap)) return newton(near, rest, 0, target, rest, temperature, last_step, threads);
    if (root.gap <= 2 * kReach * temperature)
        return newton(near, 0, root.gap, target, rest, temperature, last_step, threads);
    for (int64_t i = 0; i < near.n; i++) {
        const double apart = near.apart[i];
        const double beyond = std::min(apart < 0 ? apart + root.gap : -apart, 0.0);  // above 0: not counted
        (apart < 0 ? root.lower : root.upper) += near.counted[i] * std::exp(beyond / temperature);
    }
    root.at = (temperature * std::log(root.lower / root.upper) - root.gap) / 2;
    root.found = root.in_wide_gap = true;
    return root;
}

// By how much the rows beyond the window move the root at most, in temperatures.
inline double neglected(const Near &near, const Root &root, double temperature) {
    auto sum = [&](double weight, double far) { return weight > 0 ? weight * std::exp(-far / temperature) : 0; };
    if (root.in_wide_gap)
        return sum(near.above, near.up) / root.upper + sum(near.below, near.down - root.gap) / root.lower;
    return (sum(near.above, near.up - root.at) + sum(near.below, near.down + root.at)) / root.slope;
}

// Gathers what lies within `reach` of start (unit: a factor that keeps the smallest of doubles' digits).
template <class T>
void fill_near(const Counted<T> &of, const Edge &start, double reach, double unit, double total, int threads,
               SelectRoom &room, Near &near) {
    const T low = T(start.score - reach / unit), high = T(start.score + reach / unit);
    near.n = gather(of, low, high, true, threads, room.index.get(), &near.above);
    const int64_t parts = (near.n + kSumPart - 1) / kSumPart;
    std::vector<double> sums(parts);
    parallel(near.n < 4 * kSumPart ? 1 : threads, parts, [&](int64_t part) {
        for (int64_t i = part * kSumPart; i < std::min(near.n, (part + 1) * kSumPart); i++) {
            const int64_t row = room.index[i];
            const double weight = of.weight_of(row), apart = (double(of.score[row]) - start.score) * unit;
            near.apart[i] = std::min(std::max(apart, -1e300), 1e300);
            near.counted[i] = of.counts(row) ? weight : 0;
            near.hit[i] = of.positive[row] ? weight : 0;
            sums[part] += near.counted[i];
        }
    });
    for (int64_t i = near.n; i < near.n + 16; i++) near.apart[i] = near.counted[i] = near.hit[i] = 0;
    near.up = (double(high) - start.score) * unit;
    near.down = (start.score - double(low)) * unit;
    near.below = total - near.above;
    for (double sum : sums) near.below -= sum;
    // What rounding leaves of nothing is nothing.
    if (std::isinf(near.down) || near.below <= 1e-15 * total) near.below = 0;
}

// At the root: the soft weight of positives above, and the gradient of it, in units of 1 / t, which `hit` becomes.
// moment: the gradient's sum times the distances from start. alone: the part of the slopes whose rows are in one sum.
struct Found { double weight, moment, alone; };

// A row's gradient is p_j z_j - c_j z_j D / S, with z the slopes, D = sum p z, S = sum c z. Rows that are positive and
// counted, so that p = c, are in both sums: without them p_j z_j (S - D) / S keeps its digits where these cancel.
inline Found found_at(Near &near, const Root &root, double temperature) {
    using V = Vec<double>;
    const V zero{};
    V found{}, hits{}, pulls{}, hits_alone{}, pulls_alone{};
    for (int64_t i = 0; i < near.n; i += kLanes<double>) {
        const V x = (load(near.apart.get() + i) - root.at) * (1.4426950408889634 / temperature);
        const V e = exp2(vmax(x < 0 ? x : -x, splat(-1000.0))), r = 1.0 / (1.0 + e), er = e * r;
        const V hit = load(near.hit.get() + i), counted = load(near.counted.get() + i);
        const V slope = hit * er * r, pull = counted * er * r;
        found += hit * (x < 0 ? er : r);
        hits += slope;
        pulls += pull;
        hits_alone += counted > 0 ? zero : slope;
        pulls_alone += hit > 0 ? zero : pull;
        store(near.hit.get() + i, slope);
        if (!root.in_wide_gap) store(near.counted.get() + i, pull);
    }
    double share = hsum(hits) / hsum(pulls), share_of_both = (hsum(pulls_alone) - hsum(hits_alone)) / hsum(pulls);
    if (root.in_wide_gap) {
        for (int64_t i = 0; i < near.n; i++) {
            const double apart = near.apart[i], beyond = std::min(apart < 0 ? apart + root.gap : -apart, 0.0);
            near.counted[i] *= std::exp(beyond / temperature) / (2 * (apart < 0 ? root.lower : root.upper));
        }
        share = hsum(hits);
        share_of_both = 1 - share;
    }
    V moment{};
    for (int64_t i = 0; i < near.n; i += kLanes<double>) {
        const V hit = load(near.hit.get() + i), pull = load(near.counted.get() + i);
        const V slope = hit == pull ? hit * share_of_both : hit - pull * share;
        store(near.hit.get() + i, slope);
        moment += slope * load(near.apart.get() + i);
    }
    return {hsum(found), hsum(moment), root.in_wide_gap ? 1 : (hsum(pulls_alone) + hsum(hits_alone)) / hsum(pulls)};
}

// The gradient through the standard deviation: pull * w_j (s_j - mean) of each iid row.
template <class T> struct ScaleGradient {
    const Rows<T> &rows;
    double pull, mean;

    double of(int64_t j) const {
        if (pull == 0 || (rows.iid && !rows.iid[j])) return 0;
        if (!rows.weight) return pull * (double(rows.score[j]) - mean);
        return rows.weight[j] > 0 ? pull * double(rows.weight[j]) * (double(rows.score[j]) - mean) : 0;
    }
    // Of every live row.
    void write(int threads, T *gradient) const {
        if (pull == 0) { std::memset(gradient, 0, sizeof(T) * rows.live); return; }
        parallel(threads, (rows.live + kGatherPart - 1) / kGatherPart, [&](int64_t part) {
            const int64_t begin = part * kGatherPart, end = std::min(rows.live, begin + kGatherPart);
            if (rows.weight || rows.iid) for (int64_t j = begin; j < end; j++) gradient[j] = T(of(j));
            else for (int64_t j = begin; j < end; j++) gradient[j] = T(pull * (double(rows.score[j]) - mean));
        });
    }
};

// The weight of positives, and of iid negatives.
struct ClassWeights { double positive, negative; };
template <class T> ClassWeights class_weights(const Rows<T> &rows) {
    if (!rows.weight && !rows.iid) {
        int64_t positives = 0;
        for (int64_t j = 0; j < rows.count; j++) positives += rows.positive[j];
        return {double(positives), double(rows.count - positives)};
    }
    double positive[8] = {}, negative[8] = {};
    for (int64_t j = 0; j < rows.count; j++) {
        const double weight = !rows.weight ? 1.0 : rows.weight[j] > 0 ? double(rows.weight[j]) : 0.0;
        positive[j & 7] += rows.positive[j] ? weight : 0.0;
        negative[j & 7] += rows.positive[j] || (rows.iid && !rows.iid[j]) ? 0.0 : weight;
    }
    for (int lane = 1; lane < 8; lane++) { positive[0] += positive[lane]; negative[0] += negative[lane]; }
    return {positive[0], negative[0]};
}

template <class T>
void recall_of_class(const Pool &pool, int64_t c, double quantile, bool among_negatives, int threads,
                     SelectRoom &room, Near &near, double *threshold) {
    const Counted<T> of{rows_of<T>(pool, c), among_negatives};
    T *gradient = pool.gradient ? static_cast<T *>(pool.gradient) + c * pool.live : nullptr;
    const Statistics statistic = statistics<T>(of, threads);
    const ClassWeights weight = class_weights<T>(of);
    const double total = among_negatives ? weight.negative : statistic.iid_weight, target = quantile * total;
    const bool defined = statistic.finite && weight.positive > 0 && weight.negative > 0;
    const double nan = std::numeric_limits<double>::quiet_NaN();
    pool.value[c] = nan;
    if (!defined && gradient) std::fill(gradient, gradient + of.live, statistic.finite ? T(0) : T(nan));
    if (threshold) *threshold = statistic.finite ? 0 : nan;
    if (!statistic.finite || !(total > 0) || !(defined || threshold)) return;

    double temperature = pool.temperature * (pool.in_std ? statistic.std : 1.0);
    const double unit = temperature < 1e-270 ? 0x1p+200 : 1.0;  // else 1 / temperature might be infinite
    temperature *= unit;
    const Edge start = find_edge(of, target * (1 - kRounding), total, threads, room);
    const double surplus = start.above + start.tied - target;
    double reach = temperature * (3 - std::log(kNeglected<T>) - std::log(std::min(quantile, 1 - quantile)));
    Root root;
    Found found;
    for (int attempt = 0; attempt < 3; attempt++) {
        fill_near(of, start, reach, unit, total, threads, room, near);
        root = find_root(near, surplus, target, total, temperature, kLastStep<T>, threads);
        const double missed = root.found ? neglected(near, root, temperature) : nan;
        found = found_at(near, root, temperature);
        const double allowed = std::max(kNeglected<T> * std::min(found.alone, 1.0), 1e-16);
        if (missed <= allowed) break;
        // All rows, unless it is known how much further the neglected have to lie.
        reach += attempt == 0 && missed > 0 ? temperature * (1 + std::log(missed / allowed))
                                            : std::numeric_limits<double>::infinity();
    }
    if (threshold) *threshold = start.score + root.at / unit;
    if (!defined) return;
    pool.value[c] = found.weight / weight.positive;
    if (!gradient) return;
    const double per = unit / temperature / weight.positive, moment = per * found.moment / unit;
    const bool moves = pool.in_std && statistic.low < statistic.high;
    const double pull = moves ? -moment / statistic.std / statistic.std / statistic.iid_weight : 0;
    const ScaleGradient<T> scale{of, pull, statistic.mean};
    scale.write(threads, gradient);
    for (int64_t i = 0; i < near.n && room.index[i] < of.live; i++)
        gradient[room.index[i]] = T(per * near.hit[i] + scale.of(room.index[i]));
}

// Calls work(class, threads inside the class, memory) for each class: many small ones spread over the threads.
template <class Work> void each_class(const Pool &pool, Work work) {
    const bool inside = pool.classes == 1 || pool.rows >= (1 << 18);
    const int64_t threads = std::max<int64_t>(1, std::min<int64_t>(pool.threads, pool.classes));
    const int64_t parts = inside ? 1 : threads;
    parallel(int(parts), parts, [&](int64_t part) {
        SelectRoom room(pool.rows);
        for (int64_t c = part; c < pool.classes; c += parts)
            work(c, inside && pool.rows >= (1 << 18) ? pool.threads : 1, room);
    });
}

template <class T> int recall(const Pool *pool, double quantile, int among_negatives, double *threshold) {
    return guarded([&] {
        each_class(*pool, [&](int64_t c, int threads, SelectRoom &room) {
            Near near(pool->rows);
            recall_of_class<T>(*pool, c, quantile, among_negatives != 0, threads, room, near,
                               threshold ? threshold + c : nullptr);
        });
    });
}
RARELOSS_API int rareloss_recall_f32(const Pool *pool, double quantile, int among_negatives, double *threshold) {
    return recall<float>(pool, quantile, among_negatives, threshold);
}
RARELOSS_API int rareloss_recall_f64(const Pool *pool, double quantile, int among_negatives, double *threshold) {
    return recall<double>(pool, quantile, among_negatives, threshold);
}
