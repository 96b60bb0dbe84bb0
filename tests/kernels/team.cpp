// Many short calls of team.cpp by several threads at once, and whether helpers that are held up are
// asked again: 0 if all is right. Also run under the thread sanitizer.

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <pthread.h>
#include <time.h>
#include <unistd.h>
#include <sys/wait.h>

#include "worth.h"

extern "C" void ddfm_team_starts(void *);
extern "C" void ddfm_team(void (*)(void *), void *, unsigned, unsigned);
extern "C" int64_t ddfm_team_alone();

constexpr int PIECES = 64, CALLS = 400;

struct Sum {
    std::atomic<int> next{0};
    int64_t found[PIECES] = {};  // not atomic, as results are
};

static void add(void *argument) {
    Sum &sum = *(Sum *)argument;
    for (int i; (i = sum.next.fetch_add(1)) < PIECES;) sum.found[i] = i;
}

static void *caller(void *threads) {
    for (int call = 0; call < CALLS; call++) {
        Sum sum;
        ddfm_team(add, &sum, (unsigned)(intptr_t)threads, 0);
        int64_t total = 0;
        for (int64_t found : sum.found) total += found;
        if (total != PIECES * (PIECES - 1) / 2) return (void *)1;
        if (call % 50 == 0) usleep(2000);  // workers fall asleep
    }
    return nullptr;
}

static bool several() {
    pthread_t threads[3];
    for (intptr_t k = 0; k < 3; k++) pthread_create(threads + k, nullptr, caller, (void *)(k + 2));
    bool right = true;
    for (pthread_t thread : threads) {
        void *failed = nullptr;
        pthread_join(thread, &failed);
        right = right && !failed;
    }
    return right;
}

// A machine on which calls have these speeds, by a clock of its own.
struct Machine {
    Worth worth;
    int64_t now = 1000000000;
    double helped = 0, alone = 0;  // nanoseconds since forget()

    void forget() { helped = alone = 0; }

    void run(int seconds, double speed_helped, double speed_alone) {
        for (const int64_t end = now + seconds * (int64_t)1000000000; now < end;) {
            const bool measured = worth.begin(now), by_itself = worth.alone;
            const int64_t passed = 300000;
            now += passed;
            (by_itself ? alone : helped) += (double)passed;
            const double speed = by_itself ? speed_alone : speed_helped;
            if (measured) worth.end(by_itself, (int64_t)(speed * (double)passed), passed);
            now += 30000;
        }
    }
};

// 0, or the number of what the decisions of Worth do not do.
static int decisions() {
    Machine machine;
    machine.run(10, 1.3, 1);
    if (machine.alone > 0) return 1;  // an idle machine has nothing to try
    machine.run(2, 0.3, 0.32);
    machine.forget();
    machine.run(20, 0.3, 0.32);
    if (machine.helped > 0.05 * machine.alone) return 2;  // helpers bring nothing
    if (machine.helped == 0) return 3;                    // it has to try them again
    machine.run(8, 1.3, 1);
    machine.forget();
    machine.run(10, 1.3, 1);
    if (machine.alone > 0) return 4;  // the machine is idle again
    machine.run(2, 0.6, 0.4);
    machine.forget();
    machine.run(20, 0.6, 0.4);
    if (machine.alone > 0.05 * machine.helped) return 5;  // busy, and helpers pay
    machine.run(20, 0.45, 0.4);
    machine.forget();
    machine.run(20, 0.45, 0.4);
    if (machine.helped > 0.05 * machine.alone) return 6;  // they bring too little
    machine.run(60, 0.2, 0.98);
    machine.run(5, 1.9, 1);
    machine.forget();
    machine.run(5, 1.9, 1);
    if (machine.alone > 0) return 7;  // after small calls, large ones get them with the next try
    return 0;
}

static double seconds(clockid_t clock) {
    timespec at;
    clock_gettime(clock, &at);
    return (double)at.tv_sec + 1e-9 * (double)at.tv_nsec;
}

struct Held {
    pthread_t caller = pthread_self();
    int64_t alone = ddfm_team_alone();
    std::atomic<bool> came{false};

    bool by_itself() const { return ddfm_team_alone() > alone; }
};

// Works for a millisecond if alone; otherwise only waits, first for a helper that then waits too.
static void hold_up(void *argument) {
    Held &held = *(Held *)argument;
    if (!pthread_equal(held.caller, pthread_self())) {
        held.came = true;
        usleep(5000);
    } else if (held.by_itself()) {
        const double end = seconds(CLOCK_THREAD_CPUTIME_ID) + 1e-3;
        while (seconds(CLOCK_THREAD_CPUTIME_ID) < end) {}
    } else {
        while (!held.came) usleep(100);
    }
}

static bool call_by_itself() {
    Held held;
    ddfm_team(hold_up, &held, 2, 0);
    return held.by_itself();
}

// Helpers that are held up are asked no more for a while, far longer than for a try; but then again.
static bool held_up() {
    if (call_by_itself()) return false;
    const double end = seconds(CLOCK_MONOTONIC) + 60;
    for (double since = 0, now = 0; now < end; now = seconds(CLOCK_MONOTONIC)) {
        if (!call_by_itself()) {
            if (since > 0 && now > since + 0.45) return true;
            since = 0;
        } else if (since == 0) {
            since = now;
        }
    }
    return false;
}

int main(int count, char **) {
    if (const int failed = decisions()) return 10 + failed;
    if (caller((void *)2)) return 2;  // before threads can be started: alone
    ddfm_team_starts((void *)pthread_create);
    if (!held_up()) return 6;
    if (!several()) return 3;
    if (count > 1) return 0;  // the thread sanitizer knows no threads after a fork
    const pid_t child = fork();
    if (child == 0) _exit(ddfm_team_alone() ? 7 : several() ? 0 : 4);
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 5;
}
