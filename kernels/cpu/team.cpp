// Threads that work for a call, which waits only for those that have joined it.
//
// OpenMP's calls wait until each of their threads has run, even if no work is left: on a machine
// whose cores are busy, that costs a time slice of the scheduler per layer. Here a call closes when
// the thread that made it finds no more work, and threads that come later keep waiting for the
// next.
//
// Functions that run this way hand out their work piece by piece; their results do not depend on
// how many threads join. Where it does not pay, none is asked to (worth.h).

#include <atomic>
#include <cstdint>
#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "worth.h"

typedef void (*Function)(void *);
typedef int (*Start)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

// Nanoseconds for which a thread polls before it falls asleep: waking it takes longer than a small
// layer. Calls of a forward pass follow each other after some 30 microseconds; threads poll for the
// next one for twice the recent pause between calls, unless that is too long.
constexpr int64_t LEAST = 20000, MOST = 150000, WHOLE = 1000000;

// Polls less often than memory can be read.
static inline void pause_once() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Nanoseconds of the clock, or of this thread on the processor.
static inline int64_t now(clockid_t clock = CLOCK_MONOTONIC) {
    timespec at;
    clock_gettime(clock, &at);
    return at.tv_sec * (int64_t)1000000000 + at.tv_nsec;
}

// Returns whether a condition became true within so many nanoseconds.
template <class Test>
static inline bool look(Test test, int64_t patience) {
    const int64_t end = now() + patience;
    do {
        for (int i = 0; i < 8; i++) {
            if (test()) return true;
            pause_once();
        }
    } while (now() < end);
    return test();
}

struct Call {
    Function function;
    void *argument;
    unsigned places;  // left for threads that have not joined yet
    bool alone = false, measured = false;
    int64_t began = 0;
    std::atomic<int64_t> work{0};  // nanoseconds of all threads, if measured
    std::atomic<unsigned> inside{0};
    Call *next = nullptr;

    void run() {
        const int64_t before = measured ? now(CLOCK_THREAD_CPUTIME_ID) : 0;
        function(argument);
        if (measured) work.fetch_add(now(CLOCK_THREAD_CPUTIME_ID) - before, std::memory_order_relaxed);
    }
};

// All members belong to whoever holds the lock, except the two counters that are polled without it.
struct Team {
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t called = PTHREAD_COND_INITIALIZER, left = PTHREAD_COND_INITIALIZER;
    pid_t process = getpid();
    Call *first = nullptr;
    std::atomic<unsigned> calls{0};
    unsigned hired = 0, asleep = 0, leaving = 0;
    int64_t posted = 0;  // when the last call came
    int64_t pause = 0;   // between recent calls, a running mean
    Worth worth;
    int64_t alone = 0;  // calls that asked for no thread
};

// After a fork, the threads stay behind in the parent process, maybe holding the lock.
static std::atomic<Team *> current{nullptr};

static Team *team_of_process() {
    Team *team = current.load(std::memory_order_acquire);
    if (team && team->process == getpid()) return team;
    Team *made = new Team;
    if (current.compare_exchange_strong(team, made)) return made;
    delete made;
    return team;
}

static Call *open_call(const Team &team) {
    for (Call *call = team.first; call; call = call->next)
        if (call->places) return call;
    return nullptr;
}

// Waits until another call comes; the lock is held before and after.
static void await_call(Team &team) {
    const unsigned seen = team.calls.load(std::memory_order_relaxed);
    const int64_t began = now(), patience = LEAST + (team.pause < MOST ? 2 * team.pause : 0);
    pthread_mutex_unlock(&team.lock);
    look([&] { return team.calls.load(std::memory_order_relaxed) != seen; }, patience);
    pthread_mutex_lock(&team.lock);
    if (team.calls.load(std::memory_order_relaxed) == seen) {
        team.asleep++;
        pthread_cond_wait(&team.called, &team.lock);
        team.asleep--;
    }
    const int64_t took = team.posted - began;
    if (took > 0) team.pause += ((took < WHOLE ? took : WHOLE) - team.pause) / 4;
}

static void *serve(void *argument) {
    Team &team = *(Team *)argument;
    pthread_mutex_lock(&team.lock);
    for (;;) {
        Call *call = open_call(team);
        if (!call) {
            await_call(team);
            continue;
        }
        call->places--;
        call->inside.fetch_add(1, std::memory_order_relaxed);
        pthread_mutex_unlock(&team.lock);
        call->run();
        pthread_mutex_lock(&team.lock);
        // this may end the call, and its memory may then be gone
        if (call->inside.fetch_sub(1, std::memory_order_release) == 1 && team.leaving)
            pthread_cond_broadcast(&team.left);
    }
    return nullptr;
}

// Starts threads up to a number, or fewer if the system refuses more; signals go to other threads.
static void hire(Team &team, unsigned count, Start start) {
    if (team.hired >= count) return;
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    while (team.hired < count && start(&thread, nullptr, serve, &team) == 0) team.hired++;
    sigprocmask(SIG_SETMASK, &before, nullptr);
}

static void ask(Team &team, Call &call, Start start) {
    hire(team, call.places, start);
    call.next = team.first;
    team.first = &call;
    team.calls.fetch_add(1, std::memory_order_relaxed);
    team.posted = call.began;
    for (unsigned i = 0; i < call.places && i < team.asleep; i++) pthread_cond_signal(&team.called);
}

static void open(Team &team, Call &call, Start start) {
    pthread_mutex_lock(&team.lock);
    call.began = now();
    call.measured = team.worth.begin(call.began);
    call.alone = team.worth.alone;
    if (call.alone)
        team.alone++;
    else
        ask(team, call, start);
    pthread_mutex_unlock(&team.lock);
}

// Lets no more threads join, and waits for those that have; the lock is held before and after.
static void await_helpers(Team &team, Call &call) {
    Call **at = &team.first;
    while (*at != &call) at = &(*at)->next;
    *at = call.next;
    if (!call.inside.load(std::memory_order_acquire)) return;
    pthread_mutex_unlock(&team.lock);
    look([&] { return !call.inside.load(std::memory_order_acquire); }, MOST);
    pthread_mutex_lock(&team.lock);
    team.leaving++;
    while (call.inside.load(std::memory_order_acquire)) pthread_cond_wait(&team.left, &team.lock);
    team.leaving--;
}

static void close(Team &team, Call &call) {
    pthread_mutex_lock(&team.lock);
    if (!call.alone) await_helpers(team, call);
    if (call.measured) team.worth.end(call.alone, call.work.load(), now() - call.began);
    pthread_mutex_unlock(&team.lock);
}

static Start start_thread = nullptr;

extern "C" {

// pthread_create, looked up at run time: glibc 2.34 gave it a version that older ones lack.
void ddfm_team_starts(void *function) { start_thread = (Start)function; }

// Runs a function on this thread and on up to `threads - 1` others, like OpenMP's GOMP_parallel.
void ddfm_team(Function function, void *argument, unsigned threads, unsigned) {
    if (threads <= 1 || !start_thread) return function(argument);
    Team &team = *team_of_process();
    Call call{function, argument, threads - 1};
    open(team, call, start_thread);
    call.run();
    close(team, call);
}

// Counts the calls of this process that asked for no other thread because that did not pay.
int64_t ddfm_team_alone() {
    Team &team = *team_of_process();
    pthread_mutex_lock(&team.lock);
    const int64_t found = team.alone;
    pthread_mutex_unlock(&team.lock);
    return found;
}
}
