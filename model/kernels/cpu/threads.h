// A few threads that meet at barriers. They spin only inside a job, and sleep between jobs.
#pragma once

#include <immintrin.h>
#include <sched.h>

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

namespace bedside {

class Pool {
 public:
  explicit Pool(int num_threads) : num_threads_(num_threads) {
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
    num_busy_.store(num_threads_ - 1);
    job_number_.fetch_add(1);
    job_number_.notify_all();
    job(0);
    wait_until([this] { return num_busy_.load(std::memory_order_acquire) == 0; });
  }

  // Inside a job: returns once every thread has come here.
  void barrier() {
    if (num_threads_ == 1) return;
    const unsigned phase = phase_.load(std::memory_order_acquire);
    if (num_arrived_.fetch_add(1, std::memory_order_acq_rel) == num_threads_ - 1) {
      num_arrived_.store(0, std::memory_order_relaxed);
      next_task_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
    } else {
      wait_until([&] { return phase_.load(std::memory_order_acquire) != phase; });
    }
  }

  // Inside a job, by every thread: work(task) for each task once, taken by whoever is free; then a barrier. Tasks are
  // handed out one by one because a thread that the system puts aside must not keep the others waiting.
  template <typename Work>
  void for_each(int num_tasks, Work&& work) {
    for (int task; (task = next_task_.fetch_add(1, std::memory_order_relaxed)) < num_tasks;) work(task);
    barrier();
    if (num_threads_ == 1) next_task_.store(0, std::memory_order_relaxed);
  }

 private:
  // On a busy machine the one waited for may have no core: after some microseconds its turn comes before our spinning.
  template <typename Condition>
  static void wait_until(Condition&& is_met) {
    for (int tries = 0; !is_met(); ++tries) tries < 4000 ? _mm_pause() : static_cast<void>(sched_yield());
  }

  void work(int index) {
    unsigned seen = 0;
    while (true) {
      job_number_.wait(seen);
      seen = job_number_.load();
      if (is_closing_) return;
      (*job_)(index);
      num_busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  const int num_threads_;
  std::vector<std::thread> workers_;
  const std::function<void(int)>* job_ = nullptr;
  std::atomic<bool> is_closing_{false};
  alignas(64) std::atomic<unsigned> job_number_{0};
  alignas(64) std::atomic<int> num_busy_{0};
  alignas(64) std::atomic<int> num_arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
  alignas(64) std::atomic<int> next_task_{0};
};

}  // namespace bedside
