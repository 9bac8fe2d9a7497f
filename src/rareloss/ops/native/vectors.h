// Vectors of floats and doubles as wide as the machine's, with exp2 and log: the one file that knows instruction sets.
//
// gcc's vector types, which clang has too, so the same lines serve SSE, AVX2, AVX-512 and NEON. `a < b ? a : b` picks
// by lane. A load or store here never asks for alignment.
#pragma once

#include "common.h"

#if defined(__AVX512F__)
#define RARELOSS_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define RARELOSS_VECTOR_BYTES 32
#else
#define RARELOSS_VECTOR_BYTES 16
#endif
#define RARELOSS_VECTOR(type, bytes) __attribute__((vector_size(bytes))) type

template <class T> struct Simd;
template <> struct Simd<float> {
    using V = RARELOSS_VECTOR(float, RARELOSS_VECTOR_BYTES);
    using Bits = RARELOSS_VECTOR(uint32_t, RARELOSS_VECTOR_BYTES);
    using Signed = RARELOSS_VECTOR(int32_t, RARELOSS_VECTOR_BYTES);
};
template <> struct Simd<double> {
    using V = RARELOSS_VECTOR(double, RARELOSS_VECTOR_BYTES);
    using Bits = RARELOSS_VECTOR(uint64_t, RARELOSS_VECTOR_BYTES);
    using Signed = RARELOSS_VECTOR(int64_t, RARELOSS_VECTOR_BYTES);
};
template <class T> using Vec = typename Simd<T>::V;
template <class T> constexpr int kLanes = RARELOSS_VECTOR_BYTES / sizeof(T);

template <class T> inline Vec<T> load(const T *from) {
    Vec<T> v;
    memcpy(&v, from, sizeof v);
    return v;
}
template <class T> inline void store(T *to, Vec<T> v) { memcpy(to, &v, sizeof v); }
template <class T> inline Vec<T> splat(T x) { return x - Vec<T>{}; }
template <class V> inline V vmin(V a, V b) { return a < b ? a : b; }  // b where a is NaN
template <class V> inline V vmax(V a, V b) { return a > b ? a : b; }
// By halves: lane after lane each addition would wait for the last, longer than all else at a row of a walk.
template <class V> RARELOSS_INLINE double hsum(V v) {
    double part[sizeof v / sizeof v[0]];
    for (size_t i = 0; i < sizeof v / sizeof v[0]; i++) part[i] = v[i];
    for (size_t n = sizeof v / sizeof v[0] / 2; n > 0; n /= 2) for (size_t i = 0; i < n; i++) part[i] += part[i + n];
    return part[0];
}

// 2^x for |x| <= 126: the whole part goes into the exponent, the rest of +-1/2 through a polynomial; error 1e-7.
inline Vec<float> exp2(Vec<float> x) {
    const Vec<float> rounded = x + 12582912.f;  // 1.5 * 2^23: the sum's last bits are the whole part
    const Vec<float> f = x - (rounded - 12582912.f);
    Vec<float> p = 0.0001546973198244552f * f + 0.0013400432165251623f;
    for (float c : {0.00961802560294165f, 0.05550327214209535f, 0.24022651213595259f, 0.69314720671062f, 1.0f})
        p = p * f + c;
    using Bits = Simd<float>::Bits;
    return (Vec<float>)((Bits)p + ((Bits)rounded << 23));
}
// The same for |x| <= 1021, error 2e-15.
inline Vec<double> exp2(Vec<double> x) {
    const Vec<double> rounded = x + 6755399441055744.0;  // 1.5 * 2^52
    const Vec<double> f = x - (rounded - 6755399441055744.0);
    Vec<double> p = 2.1013421961526267e-10 * f + 7.094615712403708e-09;
    for (double c : {1.0194830027879118e-07, 1.3215327485017986e-06, 1.5252690270732648e-05, 0.00015403530651639575,
                     0.0013333558195780515, 0.00961812910742802, 0.055504108664604576, 0.2402265069591097,
                     0.6931471805599466, 1.0000000000000007})
        p = p * f + c;
    using Bits = Simd<double>::Bits;
    return (Vec<double>)((Bits)p + ((Bits)rounded << 52));
}

// N doubles side by side, for sums in double whatever the scores' type: as many machine vectors as that takes.
template <int N> struct Doubles {
    static constexpr int count = (N + kLanes<double> - 1) / kLanes<double>;
    Vec<double> v[count];
    double operator[](int i) const { return v[i / kLanes<double>][i % kLanes<double>]; }
    double &operator[](int i) { return reinterpret_cast<double *>(v)[i]; }
};
#define RARELOSS_EACH _Pragma("GCC unroll 16") for (int i = 0; i < Doubles<N>::count; i++)
#define RARELOSS_OPERATOR(op)                                                                        \
    template <int N> inline Doubles<N> operator op(Doubles<N> x, const Doubles<N> &y) {              \
        RARELOSS_EACH x.v[i] = x.v[i] op y.v[i];                                                     \
        return x;                                                                                    \
    }                                                                                                \
    template <int N> inline Doubles<N> operator op(Doubles<N> x, double y) {                         \
        RARELOSS_EACH x.v[i] = x.v[i] op y;                                                          \
        return x;                                                                                    \
    }
RARELOSS_OPERATOR(+)
RARELOSS_OPERATOR(-)
RARELOSS_OPERATOR(*)
template <int N> inline Doubles<N> &operator+=(Doubles<N> &x, const Doubles<N> &y) { return x = x + y; }
template <int N> inline Doubles<N> &operator*=(Doubles<N> &x, const Doubles<N> &y) { return x = x * y; }
template <int N> RARELOSS_INLINE double hsum(const Doubles<N> &x) {
    Vec<double> sum = x.v[0];
    for (int i = 1; i < Doubles<N>::count; i++) sum += x.v[i];
    return hsum(sum);
}
// N scores or weights as doubles.
template <int N, class T> inline Doubles<N> wide(const T *from) {
    typedef RARELOSS_VECTOR(T, sizeof(T) * kLanes<double>) Narrow;
    Doubles<N> x;
    RARELOSS_EACH {
        Narrow narrow;
        memcpy(&narrow, from + i * kLanes<double>, sizeof narrow);
        x.v[i] = __builtin_convertvector(narrow, Vec<double>);
    }
    return x;
}
