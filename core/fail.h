/* fail.h: points at which a test build fails on purpose: make FAIL=1. In all other builds they are
   nothing. PLUA_FAIL=point:nth:action[,...] says what happens when:
     point   a name of the list below
     nth     the nth time that any process of the team comes by, counted from the team's opening, so
             that a replacement does not do it again; *: every time
     action  kill stop segv bus fpe abort term   this process gets that signal
             exit0 exit1    it calls exit()
             delay=ms       it sleeps
             errno=n        the step fails with that errno, where it can
             append=path    it appends a line, the point's name, to that file
   The variable is read again at every point: what an item sets holds in its worker, from then on.
   SPDX-License-Identifier: MIT */
#ifndef PLUA_FAIL_H
#define PLUA_FAIL_H

/* name, name in PLUA_FAIL, whether errno=n is possible, what comes next */
#define FAIL_POINTS(X)                                                                       \
  X(W_BOOT, "w.boot", 0, "a worker's process makes itself at home")                          \
  X(W_GO, "w.go", 0, "it is watched, and begins")                                            \
  X(W_ENTER, "w.enter", 0, "init runs")                                                      \
  X(W_READY, "w.ready", 0, "it says that it takes work")                                     \
  X(W_DEQ, "w.deq", 0, "it has taken a batch; its word will say so")                         \
  X(W_TAKE, "w.take", 0, "its word says so; a frame will")                                   \
  X(W_BEGIN, "w.begin", 0, "it has claimed an item, and runs it")                            \
  X(W_DECODE, "w.decode", 0, "what the item or its function came as is decoded")             \
  X(W_ENCODE, "w.encode", 0, "the item has run, its result is encoded")                      \
  X(W_SPILL, "w.spill", 1, "a message gets memory outside the ring")                         \
  X(W_PUBLISH_BEFORE, "w.publish.before", 0, "a frame, of an item or not, lies there whole") \
  X(W_PUBLISH_MID, "w.publish.mid", 0, "one store publishes the frame")                      \
  X(W_PUBLISH_AFTER, "w.publish.after", 0, "it is published")                                \
  X(W_WAIT, "w.wait", 0, "there is no room: it waits for the owner")                         \
  X(W_WAKE, "w.wake", 0, "it rings the owner's bell")                                        \
  X(W_END, "w.end", 0, "the batch is done; a frame says so")                                 \
  X(W_IDLE, "w.idle", 0, "there is nothing to take: it sleeps")                              \
  X(W_WOKEN, "w.woken", 0, "it has slept, and looks again")                                  \
  X(W_LEAVE, "w.leave", 0, "it leaves in peace: finish runs")                                \
  X(W_BYE, "w.bye", 0, "it has said all, and exits")                                         \
  X(S_BOOT, "s.boot", 0, "the spare makes itself at home")                                   \
  X(S_FORK, "s.fork", 1, "the spare makes a worker, or a copy of itself")                    \
  X(S_ANSWER, "s.answer", 0, "it has made one, and tells the owner")                         \
  X(S_COPY, "s.copy", 0, "a copy of it begins")                                              \
  X(P_OPEN, "p.open", 1, "the owner maps the team's memory")                                 \
  X(P_PUT, "p.put", 1, "an item's payload is written")                                       \
  X(P_STORE, "p.store", 1, "payloads get more memory")                                       \
  X(P_DISPATCH, "p.dispatch", 1, "a batch is posted")                                        \
  X(P_BELL, "p.bell", 0, "it is posted; sleeping workers are woken")                         \
  X(P_TAKEBACK, "p.takeback", 0, "items of a batch are taken back")                          \
  X(P_FORK, "p.fork", 1, "a process is forked")                                              \
  X(P_SPARE, "p.spare", 0, "the spare is asked for a worker")                                \
  X(P_WATCH, "p.watch", 1, "it is forked, and is going to be watched")                       \
  X(P_GO, "p.go", 0, "it is watched, and is told to begin")                                  \
  X(P_SLEEP, "p.sleep", 1, "the owner waits for what comes")                                 \
  X(P_DRAIN, "p.drain", 0, "a frame is read")                                                \
  X(P_DELIVER, "p.deliver", 0, "an outcome is told")                                         \
  X(P_RELEASE, "p.release", 0, "all outcomes of a batch have come")                          \
  X(P_REAP, "p.reap", 0, "a worker has ended; its status is taken")                          \
  X(P_DEATH, "p.death", 0, "all that it published is told; its work is shared out")          \
  X(P_HOLD, "p.hold", 0, "a worker is kept from claiming")                                   \
  X(P_RESUME, "p.resume", 0, "it may claim again")                                           \
  X(P_INTERRUPT, "p.interrupt", 0, "an item is told to end")                                 \
  X(P_KILL, "p.kill", 0, "a worker is killed")                                               \
  X(P_HEAL, "p.heal", 0, "the board is looked at, and repaired")                             \
  X(P_RETIRE, "p.retire", 0, "workers are told to leave")                                    \
  X(P_CLOSE, "p.close", 0, "what still runs is killed")

#ifdef PLUA_FAILPOINTS

enum fail_point {
#define X(name, text, fails, what) FAIL_##name,
  FAIL_POINTS(X)
#undef X
    FAIL_COUNT
};

/* Does what PLUA_FAIL says. 0, or a negated errno where the step shall fail. */
int fail_at(enum fail_point point);
/* A team is opened: counts begin anew. */
void fail_reset(void);

#define FAIL_POINT(name) ((void)fail_at(FAIL_##name))
#define FAIL_ERROR(name) fail_at(FAIL_##name)

#else

#define FAIL_POINT(name) ((void)0)
#define FAIL_ERROR(name) 0
#define fail_reset() ((void)0)

#endif
#endif
