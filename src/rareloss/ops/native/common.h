// What every file of the kernel stands on: the C interface's structs, memory, threads, vectors.
//
// Plain C++17 for gcc and clang (vector extensions), no headers of Python or torch, no OpenMP. The functions at the
// bottom of each .cpp file are the C interface; python (library.py) calls them through ctypes. None keeps state
// between calls, so any number of threads may call at once, before and after a fork.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(_WIN32)
#define RARELOSS_API extern "C" __declspec(dllexport)
#else
#define RARELOSS_API extern "C" __attribute__((visibility("default")))
#endif

// For what is called once a row from a long loop, where the compiler's guess costs half the speed.
#define RARELOSS_INLINE inline __attribute__((always_inline))

// ---------------------------------------------------------------- the C interface's structs

enum Status : int { kOk = 0, kOutOfMemory = 1 };

// The rows that a metric ranks, class by class. A row of weight 0 is absent, whatever its score, NaN included.
struct Pool {
    const void *scores;       // [classes, rows] of float or double; classes lie score_stride elements apart
    const uint8_t *positive;  // [classes, rows], 0 or 1
    const void *weight;       // [classes, rows] of the scores' type; null where every weight is 1
    const uint8_t *iid;       // [classes, rows], 0 or 1: drawn like deployment data; null where every row is
    int64_t classes, rows, live;  // a gradient is wanted of the rows 0 .. live - 1 of each class
    int64_t score_stride, positive_stride, weight_stride, iid_stride;  // 0 where all classes share one row
    double temperature;       // above 0
    int32_t in_std;           // whether temperature is in weighted standard deviations of the iid scores
    int32_t threads;          // how many threads a large pool may use
    double *value;            // [classes]; NaN for a class that is not defined, or has a score that is not finite
    void *gradient;           // [classes, live] of the scores' type, dense; null where none is wanted
};

// ---------------------------------------------------------------- memory

// Ask for huge pages where much memory is about to be written for the first time: one page fault for 2 MiB, not for
// 4 KiB, which is most of the time of writing a large gradient. A hint to the system, nothing else.
RARELOSS_API void rareloss_prefer_huge_pages(void *start, int64_t bytes) {
#if defined(__linux__)
    constexpr uintptr_t kPage = 1 << 16;  // a multiple of every usual page
    const uintptr_t first = (uintptr_t(start) + kPage - 1) / kPage * kPage;
    const uintptr_t last = (uintptr_t(start) + bytes) / kPage * kPage;
    if (bytes >= 1 << 21) madvise(reinterpret_cast<void *>(first), last - first, MADV_HUGEPAGE);
#else
    (void)start, (void)bytes;
#endif
}

// Memory for n elements, not initialised, at a cache line's start; freed with its owner.
template <class T> class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(int64_t n) : data_(static_cast<T *>(::operator new(sizeof(T) * (n + 1), std::align_val_t(64)))) {
        rareloss_prefer_huge_pages(data_, sizeof(T) * n);
    }
    Buffer(Buffer &&other) noexcept : data_(other.data_) { other.data_ = nullptr; }
    Buffer &operator=(Buffer &&other) noexcept { std::swap(data_, other.data_); return *this; }
    ~Buffer() { if (data_) ::operator delete(static_cast<void *>(data_), std::align_val_t(64)); }
    T *get() const { return data_; }
    T &operator[](int64_t i) const { return data_[i]; }
    explicit operator bool() const { return data_ != nullptr; }

  private:
    T *data_ = nullptr;
};

// ---------------------------------------------------------------- threads

// Call work(part) for part = 0 .. parts - 1, on up to `threads` threads of this call's own.
template <class Work> void parallel(int threads, int64_t parts, Work work) {
    const int64_t helpers = std::min<int64_t>(threads, parts) - 1;
    if (helpers <= 0) { for (int64_t part = 0; part < parts; part++) work(part); return; }
    const int64_t stride = helpers + 1;
    std::vector<std::exception_ptr> failed(stride);
    auto run = [&](int64_t first) {
        try { for (int64_t part = first; part < parts; part += stride) work(part); }
        catch (...) { failed[first] = std::current_exception(); }
    };
    std::vector<std::thread> pool;
    int64_t started = 0;
    try { for (; started < helpers; started++) pool.emplace_back(run, started + 1); }
    catch (const std::exception &) {}  // no thread to be had: their parts are done here
    run(0);
    for (int64_t rest = started + 1; rest <= helpers; rest++) run(rest);
    for (auto &thread : pool) thread.join();
    for (auto &error : failed) if (error) std::rethrow_exception(error);
}

// Call work(begin, end) for the parts of 0 .. n, which are worth a thread each.
template <class Work> void in_chunks(int threads, int64_t n, int64_t chunk, Work work) {
    parallel(threads, (n + chunk - 1) / chunk,
             [&](int64_t part) { work(part * chunk, std::min((part + 1) * chunk, n)); });
}

// Run what a C function does; an exception never leaves the library.
template <class Work> int guarded(Work work) {
    try { work(); return kOk; }
    catch (const std::exception &) { return kOutOfMemory; }
}
