// Weighted quantiles without a sort: a sample brackets the quantile, the rows inside the bracket are gathered, and
// quickselect finds the row among them where the weight, summed from the highest score down, reaches its share.
#pragma once

#include "pool.h"

// A class's rows, of which some are counted: the iid ones, or the iid negatives alone.
template <class T> struct Counted : Rows<T> {
    bool negatives_only;

    bool counts(int64_t j) const {
        return (this->iid ? this->iid[j] : 1) & !(negatives_only & this->positive[j]) & (this->weight_of(j) > 0);
    }
    // Whether each of n rows counts, as bytes of 0 or 1; loops that a compiler turns into vectors.
    void counts(int64_t begin, int64_t n, uint8_t *out) const {
        const uint8_t *iid = this->iid, *positive = this->positive;
        const T *weight = this->weight;
        std::memset(out, 1, n);
        if (iid) for (int64_t i = 0; i < n; i++) out[i] &= iid[begin + i];
        if (negatives_only) for (int64_t i = 0; i < n; i++) out[i] &= positive[begin + i] ^ 1;
        if (weight) for (int64_t i = 0; i < n; i++) out[i] &= weight[begin + i] > 0;
    }
};

// Memory that the classes of a call use one after the other.
template <class T> class Room {
  public:
    T *need(int64_t n) {
        if (n > size_) kept_ = Buffer<T>(n + n / 8), size_ = n + n / 8;
        return kept_.get();
    }
    T *get() const { return kept_.get(); }
    T &operator[](int64_t i) const { return kept_[i]; }

  private:
    Buffer<T> kept_;
    int64_t size_ = 0;
};
struct Weighted { double score, weight; };
struct SelectRoom {
    Room<int32_t> index;
    Room<Weighted> weighted;
};

constexpr int64_t kGatherPart = 1 << 14;  // rows that are worth a thread

// Writes the rows of one part that lie inside [low, high], and adds up the weight of counted rows above.
template <bool every_positive, class T>
int64_t gather_part(const Counted<T> &of, int64_t begin, int64_t end, T low, T high, int32_t *index, double *above) {
    constexpr int64_t kBlock = 512;
    uint8_t counted[kBlock];
    alignas(8) uint8_t mark[kBlock];
    int64_t found = 0;
    for (; begin < end; begin += kBlock) {
        const int64_t n = std::min(kBlock, end - begin);
        const T *score = of.score + begin;
        of.counts(begin, n, counted);
        for (int64_t i = 0; i < n; i++) mark[i] = counted[i] & (score[i] >= low) & (score[i] <= high);
        if (every_positive) {
            const uint8_t *positive = of.positive + begin;
            if (!of.weight) for (int64_t i = 0; i < n; i++) mark[i] |= positive[i];
            else for (int64_t i = 0; i < n; i++) mark[i] |= positive[i] & (of.weight[begin + i] > 0);
        }
        if (high < std::numeric_limits<T>::infinity())
            for (int64_t i = 0; i < n; i++) mark[i] |= (counted[i] & (mark[i] ^ 1) & (score[i] > high)) << 1;
        std::memset(mark + n, 0, (kBlock - n) & 7);
        for (int64_t i = 0; i < n; i += 8) {
            uint64_t bits;
            std::memcpy(&bits, mark + i, 8);
            if (!every_positive && !bits) continue;  // a bracket holds few
            uint64_t inside = bits & 0x0101010101010101, beyond = bits ^ inside;
            auto take = [&](int64_t to) {
                index[to] = int32_t(begin + i + (__builtin_ctzll(inside | uint64_t(1) << 63) >> 3));
                inside &= inside - 1;
            };
            const int64_t next = found + __builtin_popcountll(inside);
            take(found);  // two at once, there or not: nobody could predict a branch
            take(found + 1);
            found += 2;
            while (inside) take(found++);
            found = next;
            for (; beyond; beyond &= beyond - 1) *above += of.weight_of(begin + i + (__builtin_ctzll(beyond) >> 3));
        }
    }
    return found;
}

// Lists the counted rows of scores in [low, high], in order, and where asked every positive of some weight too;
// `above` becomes the weight of the other counted rows above.
template <bool every_positive, class T>
int64_t gather(const Counted<T> &of, T low, T high, int threads, Room<int32_t> &index, double *above) {
    const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, of.count / kGatherPart));
    std::vector<int64_t> found(parts);
    std::vector<double> beyond(parts);
    int32_t *to = index.need(of.count + 8);  // pages that nothing is written to cost nothing
    auto begin_of = [&](int64_t part) { return part == parts ? of.count : of.count / parts * part / 8 * 8; };
    parallel(threads, parts, [&](int64_t part) {
        const int64_t begin = begin_of(part), end = begin_of(part + 1);
        found[part] = gather_part<every_positive>(of, begin, end, low, high, to + begin, &beyond[part]);
    });
    int64_t all = 0;
    *above = 0;
    for (int64_t part = 0; part < parts; part++) {
        if (part) std::memmove(to + all, to + begin_of(part), sizeof(int32_t) * found[part]);
        all += found[part];
        *above += beyond[part];
    }
    return all;
}

// The place of the first row, from the highest score down, whose weight makes the sum reach the target, with all rows
// before it moved in front; the last row where all fall short.
inline int64_t select_from_top(Weighted *rows, int64_t n, double target) {
    int64_t first = 0, last = n;
    double before = 0;
    while (last - first > 1) {
        const int64_t middle = first + (last - first) / 2;
        std::nth_element(rows + first, rows + middle, rows + last,
                         [](const Weighted &a, const Weighted &b) { return a.score > b.score; });
        double upper = 0;
        for (int64_t i = first; i < middle; i++) upper += rows[i].weight;
        if (before + upper >= target) last = middle;
        else before += upper, first = middle;
    }
    return first;
}

// Two scores that the quantile almost surely lies between: those of a sample, five standard errors either way;
// infinite where the sample says nothing.
template <class T> void sample_bracket(const Counted<T> &of, double share, SelectRoom &room, T *low, T *high) {
    *low = -std::numeric_limits<T>::infinity();
    *high = std::numeric_limits<T>::infinity();
    const int64_t step = int64_t(std::cbrt(double(of.count)));
    if (of.count < 512) return;
    Weighted *sample = room.weighted.need(of.count / step + 1);
    int64_t n = 0;
    double whole = 0, squares = 0;
    for (int64_t j = 0; j + step <= of.count; j += step) {
        // Not every step-th row, but one at random of each step: rows may come with a period.
        const int64_t row = j + int64_t((uint64_t(uint32_t(j) * 2654435761u) * uint64_t(step)) >> 32);
        if (!of.counts(row)) continue;
        const double weight = of.weight_of(row);
        sample[n++] = {double(of.score[row]), weight};
        whole += weight;
        squares += weight * weight;
    }
    if (!(whole > 0)) return;
    const double error = 5 * std::sqrt(share * (1 - share) * squares) + 2 * squares / whole;
    int64_t until = n;
    if (share * whole + error < whole) {
        until = select_from_top(sample, n, share * whole + error);
        *low = T(sample[until].score);
    }
    if (share * whole > error) *high = T(sample[select_from_top(sample, until, share * whole - error)].score);
}

// Where the weight from the highest score down reaches its target: the score, the weight above it and at it.
struct Edge { double score, above, tied; };

// `target` is above 0 and, but for rounding, at most the total weight.
template <class T> Edge find_edge(const Counted<T> &of, double target, double total, int threads, SelectRoom &room) {
    T low, high;
    sample_bracket(of, std::min(1.0, target / total), room, &low, &high);
    while (true) {
        double above, inside = 0;
        const bool every = !(low > -std::numeric_limits<T>::infinity() || high < std::numeric_limits<T>::infinity());
        const int64_t n = gather<false>(of, low, high, threads, room.index, &above);
        Weighted *rows = room.weighted.need(n);
        for (int64_t i = 0; i < n; i++) {
            const int64_t row = room.index[i];
            rows[i] = {double(of.score[row]), of.weight_of(row)};
            inside += rows[i].weight;
        }
        if (every || (above < target && above + inside >= target)) {
            const double score = rows[select_from_top(rows, n, target - above)].score;
            double tied = 0;
            for (int64_t i = 0; i < n; i++) {
                if (rows[i].score > score) above += rows[i].weight;
                else if (rows[i].score == score) tied += rows[i].weight;
            }
            return {score, above, tied};
        }
        low = -std::numeric_limits<T>::infinity();
        high = std::numeric_limits<T>::infinity();
    }
}
