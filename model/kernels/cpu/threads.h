// A few threads that meet at barriers. Inside a job they spin for a moment before they sleep; between jobs they sleep.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#if defined(BEDSIDE_TIMES)
#include <chrono>
#endif
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace bedside {

class Pool {
 public:
  explicit Pool(int num_threads) : num_threads_(num_threads), shares_(num_threads) {
    for (int index = 1; index < num_threads; ++index) workers_.emplace_back([this, index] { work(index); });
  }
  ~Pool() {
    is_closing_ = true;
    job_number_.fetch_add(1);
    job_number_.notify_all();
    for (auto& worker : workers_) worker.join();
  }
  int num_threads() const { return num_threads_; }

  // Runs job(thread index) on every thread, the caller being thread 0; returns when all are done.
  void run(const std::function<void(int)>& job) {
    job_ = &job;
#if defined(BEDSIDE_TIMES)
    times.assign(num_threads_, {});
#endif
    num_busy_.store(num_threads_ - 1);
    job_number_.fetch_add(1);
    job_number_.notify_all();
    job(0);
    for (int busy; (busy = num_busy_.load(std::memory_order_acquire)) != 0;) wait_for_change(num_busy_, busy);
  }

  // Inside a job: returns once every thread has come here.
  void barrier() {
    if (num_threads_ == 1) return;
    const unsigned phase = phase_.load(std::memory_order_acquire);
    if (num_arrived_.fetch_add(1, std::memory_order_acq_rel) == num_threads_ - 1) {
      num_arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      phase_.notify_all();
    } else {
      wait_for_change(phase_, phase);
    }
  }

  // Inside a job, by every thread: work(first, end) for runs of tasks, each task once, and a barrier. Each thread walks
  // through a share of consecutive tasks, because memory is read up to a third faster in long runs: three quarters of
  // what is left of it at a time, but no more than `longest`. Who has done its own takes from the end of another's,
  // because a thread that the system puts aside must not keep the others waiting.
  template <typename Work>
  void for_each_run(int thread, int num_tasks, int longest, Work&& work) {
    const int64_t started = now();
    if (num_threads_ == 1) {
      for (int task = 0; task < num_tasks; task += longest) work(task, std::min(task + longest, num_tasks));
      return note(thread, started, now());
    }
    const uint64_t tag = (phase_.load(std::memory_order_acquire) + 1) & 0xffff;
    for (int other = 0; other < num_threads_; ++other) {
      const int owner = (thread + other) % num_threads_;
      for (Run run; (run = take(owner, num_tasks, longest, tag, other == 0)).first < run.end;) work(run.first, run.end);
    }
    const int64_t done = now();
    barrier();
    note(thread, started, done);
  }
  // The same, task by task: work(task).
  template <typename Work>
  void for_each(int thread, int num_tasks, Work&& work) {
    for_each_run(thread, num_tasks, 1, [&](int task, int) { work(task); });
  }

#if defined(BEDSIDE_TIMES)  // what bench.phases shows: ns, of each thread's phases in the last job
  struct Times {
    int64_t started, done, left;
  };
  std::vector<std::vector<Times>> times;

 private:
  static int64_t now() { return std::chrono::steady_clock::now().time_since_epoch().count(); }
  void note(int thread, int64_t started, int64_t done) { times[thread].push_back({started, done, now()}); }
#else
 private:
  static int64_t now() { return 0; }
  void note(int, int64_t, int64_t) {}
#endif

  // Where a thread's share of consecutive tasks begins.
  int share_begin(int thread, int num_tasks) const {
    return static_cast<int>(static_cast<int64_t>(num_tasks) * thread / num_threads_);
  }

  // What is left of a thread's share: a tag of the phase in 16 bits, its first task in 24, the one behind its last in 24.
  // A word with another tag means the whole share of this phase: its owner may not have come yet.
  struct alignas(64) Share {
    std::atomic<uint64_t> word{0};
  };
  static constexpr uint64_t kMask = (1 << 24) - 1;

  struct Run {
    int first, end;
  };
  Run take(int owner, int num_tasks, int longest, uint64_t tag, bool is_own) {
    std::atomic<uint64_t>& word = shares_[owner].word;
    uint64_t seen = word.load(std::memory_order_acquire);
    while (true) {
      int begin = (seen >> 24) & kMask, end = seen & kMask;
      const bool is_new = seen >> 48 != tag;
      if (is_new) {
        begin = share_begin(owner, num_tasks);
        end = share_begin(owner + 1, num_tasks);
      }
      if (begin == end && !is_new) return {0, 0};
      const int length = std::min({longest, end - begin, (end - begin) * 3 / 4 + 1});
      const Run run = is_own ? Run{begin, begin + length} : Run{end - length, end};
      (is_own ? begin : end) += is_own ? length : -length;
      const uint64_t rest = tag << 48 | static_cast<uint64_t>(begin) << 24 | end;
      if (word.compare_exchange_weak(seen, rest, std::memory_order_acq_rel)) return run;
    }
  }

  // Spins for some microseconds, then sleeps: on a busy machine the one waited for may have no core, and gets it sooner
  // from a sleeper than from one that spins or yields. Beside one busy program on two cores a step of 16 B shapes took
  // 16.3 ms with 4,000 spins and 9.0 with 200, alone 7.6 with either; one of the embedded model 6.6 and 0.8 ms.
  template <typename Value>
  static void wait_for_change(std::atomic<Value>& value, Value old) {
    for (int tries = 0; tries < kSpins; ++tries) {
      if (value.load(std::memory_order_acquire) != old) return;
      _mm_pause();
    }
    value.wait(old, std::memory_order_acquire);
  }

  void work(int index) {
    unsigned seen = 0;
    while (true) {
      job_number_.wait(seen);
      seen = job_number_.load();
      if (is_closing_) return;
      (*job_)(index);
      if (num_busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) num_busy_.notify_all();
    }
  }

  static constexpr int kSpins = 200;

  const int num_threads_;
  std::vector<std::thread> workers_;
  std::vector<Share> shares_;
  const std::function<void(int)>* job_ = nullptr;
  std::atomic<bool> is_closing_{false};
  alignas(64) std::atomic<unsigned> job_number_{0};
  alignas(64) std::atomic<int> num_busy_{0};
  alignas(64) std::atomic<int> num_arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
};

}  // namespace bedside
