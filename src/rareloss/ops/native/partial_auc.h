// Partial AUC over a band of false-positive rates: the mean of sigmoid((s_i - s_j) / t) over positives i and the
// negatives j of the band, weighted (Narasimhan and Agarwal, KDD 2013, equation 2, with a sigmoid for each comparison).
//
// The iid negatives from the highest score down set the band: it begins where their weight reaches alpha of the whole,
// and ends at beta; rows tied at an edge are in it by a part, all alike. A mined negative (not iid) of a score in the
// band joins with the same part of its own weight, and moves no edge. Rows that swap at an edge have equal scores, so
// no term for the moving edge is missing.
#pragma once

#include "pairs.h"
#include "select.h"

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

template <class T> struct BandRoom {
    SelectRoom select;
    std::vector<int32_t> row;  // the positives, then the rows of the band
    std::vector<T> score, weight;
    std::vector<double> slope;
    int64_t positives;
    double total[2];

    // Lists the positives and the rows of the band [alpha, beta]; `scale` keeps products of weights in range.
    void list(const Class<T> &all, double alpha, double beta, double scale) {
        Counted<T> of{all, true};
        const double negatives = all.weights.negative;
        // All of the weight is also all that scores lower, whatever a running sum misses by rounding.
        const TopPart top = beta < 1 ? top_part(of, beta, negatives, all.threads, select) : TopPart{-INFINITY, 1};
        const TopPart left = alpha > 0 ? top_part(of, alpha, negatives, all.threads, select) : TopPart{1 / 0.0, 0};
        of.iid = nullptr;  // mined negatives too
        double above;
        const int64_t n = gather<true>(of, T(top.score), T(left.score), all.threads, select.index, &above);
        row.clear(), score.clear(), weight.clear();
        for (const bool wanted : {true, false}) {
            double &sum = total[!wanted] = 0;
            for (int64_t i = 0; i < n; i++) {
                const int32_t j = select.index[i];
                if (bool(of.positive[j]) != wanted) continue;
                const double part = wanted ? 1 : top.of(of.score[j]) - left.of(of.score[j]);
                if (!(part > 0)) continue;
                row.push_back(j), score.push_back(of.score[j]), weight.push_back(T(of.weight_of(j) * scale * part));
                sum += of.weight_of(j) * scale * part;
            }
            if (wanted) positives = row.size();
        }
    }
};

template <class T> void partial_auc_of(const Class<T> &of, double alpha, double beta, BandRoom<T> &room) {
    room.list(of, alpha, beta, unit_of(of.stats.weight_high));
    const int64_t n = room.row.size(), positives = room.positives;
    const double all = room.total[0] * room.total[1];
    const ScaleGradient<T> still(of, 0);
    double sum = 0, moment = 0;
    room.slope.resize(n);
    soft_counts_between(room.score, room.weight, positives, of.temperature, of.gradient ? 3 : 2,
                        [&](int64_t i, double count, double slope) {
        const double w = room.weight[i];
        if (i >= positives) sum += w * count;
        room.slope[i] = slope * (i < positives ? 1 : -1) / of.temperature / all * w;
        moment += room.slope[i] * still.standardized(double(room.score[i]));
    });
    of.value = sum / all;
    if (!of.gradient) return;
    const ScaleGradient<T> through_std(of, moment);
    in_chunks(of.threads, of.live, kGatherPart, [&](int64_t begin, int64_t end) { through_std.template write<false>(begin, end); });
    for (int64_t i = 0; i < n; i++)
        if (const int32_t j = room.row[i]; j < of.live)
            of.gradient[j] = narrow<T>(room.slope[i] + through_std.at(j));
}

template <class T> int partial_auc(const Pool *pool, double alpha, double beta) {
    return each_class<BandRoom<T>>(*pool, [&](int64_t c, int threads, BandRoom<T> &room) {
        const Class<T> of(*pool, c, threads, true);
        if (of.defined()) partial_auc_of(of, alpha, beta, room);
    });
}
