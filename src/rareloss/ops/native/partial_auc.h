// Partial AUC over a band of false-positive rates: the mean of sigmoid((s_i - s_j) / t) over positives i and the
// negatives j of the band, weighted (Narasimhan and Agarwal, KDD 2013, equation 2, with a sigmoid for each comparison).
//
// The iid negatives from the highest score down set the band: it begins where their weight reaches alpha of the whole,
// and ends at beta; rows tied at an edge are in it by a part, all alike. A mined negative (not iid) of a score in the
// band joins with the same part of its own weight, and moves no edge. Rows that swap at an edge have equal scores, so
// no term for the moving edge is missing.
#pragma once

#include "pairs.h"
#include "recall.h"

// The top of the iid negatives' weight: scores above `score`, and a part of those at it.
struct TopPart {
    double score, part;
    double of(double other) const { return other > score ? 1 : other == score ? part : 0; }
};
template <class T>
TopPart top_part(const Counted<T> &of, double share, double total, int threads, SelectRoom &room) {
    const Edge edge = find_edge(of, share * total, total, threads, room);
    return {edge.score, std::min(std::max((share * total - edge.above) / edge.tied, 0.0), 1.0)};
}

// Rows of one side of the pairs, with their weights and the slopes at them.
template <class T> struct Listed {
    std::vector<int32_t> row;
    std::vector<T> score, weight;
    std::vector<double> slope;
    double total = 0;

    void clear() { row.clear(), score.clear(), weight.clear(), total = 0; }
    void add(int32_t j, T s, double w) { row.push_back(j), score.push_back(s), weight.push_back(T(w)), total += w; }
};

template <class T> struct BandRoom {
    SelectRoom select;
    Listed<T> positives, band;
    int threads = 1;

    // Lists the positives and the rows of the band [alpha, beta]; `scale` keeps products of weights in range.
    void list(Counted<T> of, double alpha, double beta, double total, double scale) {
        const TopPart top = top_part(of, beta, total, threads, select);
        const TopPart left = alpha > 0 ? top_part(of, alpha, total, threads, select) : TopPart{1 / 0.0, 0};
        of.iid = nullptr;  // mined negatives too
        double above;
        const int64_t n = gather<true>(of, T(top.score), T(left.score), threads, select.index, &above);
        positives.clear(), band.clear();
        for (int64_t i = 0; i < n; i++) {
            const int32_t j = select.index[i];
            const double weight = of.weight_of(j) * scale;
            if (of.positive[j]) positives.add(j, of.score[j], weight);
            else if (const double part = top.of(of.score[j]) - left.of(of.score[j]); part > 0)
                band.add(j, of.score[j], weight * part);
        }
    }
};

template <class T>
void partial_auc_of_class(const Pool &pool, int64_t c, double alpha, double beta, BandRoom<T> &room) {
    const Counted<T> of{rows_of<T>(pool, c), true};
    T *gradient = pool.gradient ? static_cast<T *>(pool.gradient) + c * pool.live : nullptr;
    const Statistics stats = statistics<T>(of, room.threads);
    const ClassWeights weight = class_weights<T>(of);
    const double nan = std::numeric_limits<double>::quiet_NaN();
    pool.value[c] = nan;
    if (!stats.finite || !(weight.positive > 0 && weight.negative > 0)) {
        if (gradient) std::fill_n(gradient, of.live, stats.finite ? T(0) : T(nan));
        return;
    }
    room.list(of, alpha, beta, weight.negative, weight_scale(stats.weight_high));
    Listed<T> &positives = room.positives, &band = room.band;
    const double temperature = pool.temperature * (pool.in_std ? stats.std : 1.0), all = positives.total * band.total;
    for (Listed<T> *list : {&positives, &band}) list->slope.resize(list->row.size());
    const double sum = all_pairs(positives.score.data(), positives.weight.data(), int64_t(positives.row.size()),
                                 band.score.data(), band.weight.data(), int64_t(band.row.size()), temperature,
                                 gradient ? positives.slope.data() : nullptr, gradient ? band.slope.data() : nullptr);
    pool.value[c] = sum / all;
    if (!gradient) return;

    double moment = 0;
    for (Listed<T> *list : {&positives, &band}) {
        const double factor = (list == &band ? -1 : 1) / temperature / all;
        for (size_t i = 0; i < list->row.size(); i++) {
            list->slope[i] *= factor * list->weight[i];
            moment += list->slope[i] * ((double(list->score[i]) - stats.mean) / stats.std);
        }
    }
    const double pull = pool.in_std && stats.varies ? -moment / stats.iid_weight : 0;
    const ScaleGradient<T> scale{of, pull, stats.mean, stats.std};
    parallel(room.threads, (of.live + kGatherPart - 1) / kGatherPart, [&](int64_t part) {
        scale.write(part * kGatherPart, std::min(of.live, (part + 1) * kGatherPart), gradient);
    });
    for (const Listed<T> *list : {&positives, &band})
        for (size_t i = 0; i < list->row.size() && list->row[i] < of.live; i++)
            gradient[list->row[i]] = narrow<T>(list->slope[i] + scale.of(list->row[i]));
}

template <class T> int partial_auc(const Pool *pool, double alpha, double beta) {
    return guarded([&] {
        each_class<BandRoom<T>>(*pool, [&](int64_t c, BandRoom<T> &room) {
            partial_auc_of_class<T>(*pool, c, alpha, beta, room);
        });
    });
}
RARELOSS_API int rareloss_partial_auc_f32(const Pool *pool, double alpha, double beta) {
    return partial_auc<float>(pool, alpha, beta);
}
RARELOSS_API int rareloss_partial_auc_f64(const Pool *pool, double alpha, double beta) {
    return partial_auc<double>(pool, alpha, beta);
}
