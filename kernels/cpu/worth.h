// Finds out, by trying, whether calls are faster if other threads help.
//
// On a busy machine helpers may bring nothing: Linux shares cores out among sessions and containers
// rather than among threads, so two threads may get no more of them than one, and then wait for
// each other. What counts is the processor time of a call's work, by all of its threads, divided by
// the time that passed: its speed. No thread alone exceeds 1, so helpers that bring more are kept
// without a try. Otherwise calls run the other way for a moment every now and then.

#pragma once

#include <cstdint>

struct Worth {
    // Nanoseconds: between calls that are measured, which costs about one; of a try or a look; and
    // until the next try, which is longer each time that a try changes nothing.
    static constexpr int64_t APART = 1000000, TRY = 100000000, REST = 250000000,
                             LONGEST = 4000000000;
    // Measured calls that a decision needs.
    static constexpr int LEAST = 8;
    // How much faster helpers have to make a call to be worth their processor time.
    static constexpr double GAIN = 1.25;
    // What is known of a way from before counts this much, once it has been tried again.
    static constexpr double MEMORY = 0.5;

    bool alone = false;    // how calls run now
    bool best = false;     // the better of the two ways to run, as far as is known
    bool calm = true;      // whether helpers paid in any case
    double speed[2] = {};  // with helpers, and alone; 0: not known
    int measured = 0;      // calls of this period
    double work = 0, passed = 0;
    int64_t last = 0, until = 0, rest = REST;

    // Begins a call; returns whether it is to be measured.
    bool begin(int64_t now) {
        if (now >= until && measured >= LEAST) turn(now);
        if (now - last < APART) return false;
        last = now;
        return true;
    }

    // Ends a call that was measured; one that began before the last turn does not count.
    void end(bool was_alone, int64_t work_of_call, int64_t passed_for_call) {
        if (was_alone != alone || passed_for_call <= 0) return;
        measured++;
        work += (double)work_of_call;
        passed += (double)passed_for_call;
    }

    void turn(int64_t now) {
        const double seen = work / passed;
        double &known = speed[alone];
        // helpers that bring more than any thread alone does settle it, whatever they brought before
        const bool settled = !alone && seen > GAIN;
        known = known > 0 && !settled ? MEMORY * known + (1 - MEMORY) * seen : seen;
        measured = 0;
        work = passed = 0;
        if (alone != best) {  // the try ends
            alone = speed[false] <= GAIN * speed[true];
            rest = alone != best ? REST : rest < LONGEST ? 2 * rest : rest;
            best = alone;
            until = now + rest;
            return;
        }
        const bool still = !best && seen >= 1;
        if (still || calm) {
            speed[false] = speed[true] = 0;  // what was known is past
            rest = REST;
        } else {
            alone = !best;
        }
        calm = still;
        until = now + TRY;
    }
};
