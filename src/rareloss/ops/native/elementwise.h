// Exponential, logarithm and sums of plain arrays: functions of one number, written so that a compiler turns a loop
// over them into vectors of any width. NaN stays NaN.
#pragma once

#include "common.h"

template <class T> struct Float;
template <> struct Float<float> {
    using Bits = uint32_t;
    static constexpr int mantissa = 23, bias = 127;
    static constexpr float integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    static constexpr float lowest_exponent = -87.3f;  // exp of it is the smallest normal number
};
template <> struct Float<double> {
    using Bits = uint64_t;
    static constexpr int mantissa = 52, bias = 1023;
    static constexpr double integer = 6755399441055744.0;
    static constexpr double lowest_exponent = -708.3;
};

template <class To, class From> inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits under another type");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// c0 + c1 x + c2 x^2 + ...
template <class T> inline T polynomial(T, T last) { return last; }
template <class T, class... More> inline T polynomial(T x, T first, More... more) {
    return first + x * polynomial(x, T(more)...);
}

// exp(x) of x <= 0; 0 where it is less than the smallest normal number.
template <class T> inline T exp_negative(T x) {
    using F = Float<T>;
    // x = n log 2 + r; the sum's last bits are n and the exponent's bias, shifted to where 2^n has them.
    const T shifted = x * T(1.4426950408889634) + (F::integer + F::bias);
    const T n = shifted - (F::integer + F::bias);
    const T power = bits_as<T>(bits_as<typename F::Bits>(shifted) << F::mantissa);
    T value;
    if constexpr (sizeof(T) == 4) {
        const T r = x - n * 0.693359375f + n * 2.12194440e-4f;
        const T tail = polynomial(r, 5.0000001201e-1f, 1.6666665459e-1f, 4.1665795894e-2f, 8.3334519073e-3f,
                                  1.3981999507e-3f, 1.9875691500e-4f);
        value = (1 + (r + r * r * tail)) * power;
    } else {
        const T r = x - n * 0.693147180369123816490 - n * 1.90821492927058770002e-10;
        const T tail = polynomial(r, 1 / 2., 1 / 6., 1 / 24., 1 / 120., 1 / 720., 1 / 5040., 1 / 40320., 1 / 362880.,
                                  1 / 3628800., 1 / 39916800., 1 / 479001600., 1 / 6227020800.);
        value = (1 + (r + r * r * tail)) * power;
    }
    return x < F::lowest_exponent ? T(0) : value;
}

// log(w), for w normal and finite, or NaN; `excess` is w - 1, to more digits than w itself has near 1.
template <class T> inline T log_of(T w, T excess) {
    using F = Float<T>;
    using Bits = typename F::Bits;
    constexpr Bits one = Bits(F::bias) << F::mantissa;
    constexpr T two_to_mantissa = T(Bits(1) << F::mantissa);
    // w = m 2^n with m in [sqrt(1/2), sqrt(2)), and log m = 2 artanh(s).
    const Bits bits = bits_as<Bits>(w), biased = (bits - bits_as<Bits>(T(0.70710678118654752)) + one) >> F::mantissa;
    const T m = bits_as<T>(bits - (biased << F::mantissa) + one);
    const T n = bits_as<T>(biased | bits_as<Bits>(two_to_mantissa)) - (two_to_mantissa + F::bias);
    const T s = (n == 0 ? excess : m - 1) / (1 + m), square = s * s;
    T series;
    if constexpr (sizeof(T) == 4)
        series = polynomial(square, 2.0f, 2 / 3.f, 2 / 5.f, 2 / 7.f, 2 / 9.f);
    else
        series = polynomial(square, 2.0, 2 / 3., 2 / 5., 2 / 7., 2 / 9., 2 / 11., 2 / 13., 2 / 15., 2 / 17., 2 / 19.);
    return s * series + n * T(0.69314718055994531) + (w - w);
}

template <class T> inline T log_positive(T w) { return log_of(w, w - 1); }
template <class T> inline T log1p_positive(T excess) { return log_of(1 + excess, excess); }

// Arrays are padded to a multiple of this, so that loops over them have no rest.
constexpr int64_t kPadding = 16;
inline int64_t padded(int64_t n) { return (n + kPadding - 1) / kPadding * kPadding; }

// The sum in double of a padded array: 16 sums side by side, so that no addition waits for the last.
template <class T> inline double sum_of(const T *x, int64_t n) {
    double lane[kPadding] = {};
    for (int64_t i = 0; i < n; i += kPadding)
        for (int l = 0; l < kPadding; l++) lane[l] += x[i + l];
    double sum = 0;
    for (double part : lane) sum += part;
    return sum;
}

// The largest of a padded array; NaN is not seen.
template <class T> inline T largest_of(const T *x, int64_t n) {
    T lane[kPadding];
    std::fill(lane, lane + kPadding, -std::numeric_limits<T>::infinity());
    for (int64_t i = 0; i < n; i += kPadding)
        for (int l = 0; l < kPadding; l++) lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
    T largest = lane[0];
    for (T other : lane) largest = other > largest ? other : largest;
    return largest;
}

// Replace a padded array by exp(x - top), for a top that none exceeds; returns the sum.
template <class T> inline double exponentials(T *x, int64_t n, T top) {
    double lane[kPadding] = {};
    for (int64_t i = 0; i < n; i += kPadding)
        for (int l = 0; l < kPadding; l++) lane[l] += x[i + l] = exp_negative(x[i + l] - top);
    double sum = 0;
    for (double part : lane) sum += part;
    return sum;
}

// Copy a block [rows, width] to [classes, stride], or back. The tile's inner loop runs along the latter, whose rows lie
// a power of 2 apart in many a batch and so evict one another.
template <bool kBack, class T>
void transpose(T *block, int64_t width, std::conditional_t<kBack, const T, T> *by_class, int64_t stride, int64_t rows,
               int64_t classes) {
    constexpr int64_t kTile = 16;
    for (int64_t c0 = 0; c0 < classes; c0 += kTile)
        for (int64_t r0 = 0; r0 < rows; r0 += kTile)
            for (int64_t c = c0; c < std::min(classes, c0 + kTile); c++)
                for (int64_t r = r0; r < std::min(rows, r0 + kTile); r++) {
                    if constexpr (kBack) block[r * width + c] = by_class[c * stride + r];
                    else by_class[c * stride + r] = block[r * width + c];
                }
}
