// SPDX-License-Identifier: Apache-2.0
//! The agent is killed at its system calls, one after the other; after that no address is leaked and none is given twice.
//!
//! A round: an agent is killed at one system call of a workload, the next agent starts on what it left, and the runtime does
//! one of the things that runtimes do. `ISTHMUS_KILL_POINTS` says how many points the long run takes at least, and
//! `ISTHMUS_SEED` which ones the short run takes.

use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use isthmus_testkit::Lab;

use super::node::{Agent, Answer, Caller, Node};
use super::random::{Random, number_from, seed};
use super::runtime::{Call, Repair, Runtime};
use super::tracer::{Edge, Killed, Point, Traced, kill_at};

/// Points of the short run.
const SAMPLE: usize = 240;
/// Points of the long run.
const ALL: usize = 10_000;
/// A workload is over when this many points in a row lie behind its last system call: threads do not always make equally many.
const BEHIND_THE_END: usize = 3;
/// After so many there is something to be looked into.
const FAILURES_MAX: usize = 10;

use Call::{Add, Del, Keep};

/// What is asked of the agent that is killed.
struct Workload {
    name: &'static str,
    /// Made before, and answered.
    before: &'static [Call],
    /// Made at once; each lane is one call after the other.
    lanes: &'static [&'static [Call]],
    /// The agent that is killed is the one that starts after another was killed during the lanes.
    starting: bool,
}

const WORKLOADS: [Workload; 9] = [
    Workload { name: "ADD", before: &[], lanes: &[&[Add(0)]], starting: false },
    Workload { name: "ADD beside a pod", before: &[Add(1)], lanes: &[&[Add(0)]], starting: false },
    Workload { name: "DEL", before: &[Add(0), Add(1)], lanes: &[&[Del(0)]], starting: false },
    Workload {
        name: "ADD of two pods at once",
        before: &[],
        lanes: &[&[Add(0)], &[Add(1)]],
        starting: false,
    },
    Workload { name: "ADD, then DEL", before: &[Add(1)], lanes: &[&[Add(0), Del(0)]], starting: false },
    Workload { name: "DEL before ADD ended", before: &[], lanes: &[&[Add(0)], &[Del(0)]], starting: false },
    Workload {
        name: "two ADDs for one container",
        before: &[],
        lanes: &[&[Add(0)], &[Add(0)]],
        starting: false,
    },
    Workload { name: "GC", before: &[Add(0), Add(1)], lanes: &[&[Keep(1)]], starting: false },
    Workload { name: "start", before: &[Add(1)], lanes: &[&[Add(0)]], starting: true },
];

#[test]
fn an_agent_killed_at_some_of_its_system_calls_leaks_no_address_and_gives_none_twice() {
    let Some(lab) = Lab::new("kill-points") else { return };
    let seed = seed();
    say(&format!("ISTHMUS_SEED={seed}"));
    let each = SAMPLE / (2 * WORKLOADS.len());
    run(&lab, 0, Numbers::Some(each), seed);
}

#[test]
#[ignore = "takes minutes: make kill-points"]
fn an_agent_killed_at_every_system_call_leaks_no_address_and_gives_none_twice() {
    let Some(lab) = Lab::new("kill-points") else { return };
    let least = number_from("ISTHMUS_KILL_POINTS").map_or(ALL, |number| number as usize);
    run(&lab, least, Numbers::All, 0);
}

/// Which system calls of a workload.
#[derive(Clone, Copy)]
enum Numbers {
    All,
    /// So many, spread over all.
    Some(usize),
}

/// One workload, killed at entries or at exits, from its first system call to its last.
#[derive(Clone, Copy)]
struct Sweep {
    workload: &'static Workload,
    edge: Edge,
    /// Each turn, a point is followed by another repair.
    turn: usize,
}

/// What is done yet.
#[derive(Default)]
struct Progress {
    sweeps: usize,
    points: usize,
    rounds: usize,
    failures: Vec<String>,
}

impl Progress {
    /// The next sweep, until each was done once and `least` points were taken.
    fn next(&mut self, least: usize) -> Option<Sweep> {
        let in_turn = 2 * WORKLOADS.len();
        let enough = self.sweeps >= in_turn && self.points >= least;
        if enough || self.failures.len() >= FAILURES_MAX {
            return None;
        }
        let (turn, place) = (self.sweeps / in_turn, self.sweeps % in_turn);
        self.sweeps += 1;
        let edge = if place.is_multiple_of(2) { Edge::Entry } else { Edge::Exit };
        Some(Sweep { workload: &WORKLOADS[place / 2], edge, turn })
    }
}

/// Sweeps on two nodes at once.
fn run(lab: &Lab, least: usize, numbers: Numbers, seed: u64) {
    let (began, progress) = (Instant::now(), Mutex::new(Progress::default()));
    thread::scope(|scope| {
        for worker in 0..2 {
            let progress = &progress;
            scope.spawn(move || {
                let mut bench = Bench::new(lab, Random::of(seed + worker));
                let next = || lock(progress).next(least);
                while let Some(sweep) = next() {
                    bench.sweep(sweep, numbers, progress);
                }
            });
        }
    });
    let Progress { points, rounds, failures, .. } = &*lock(&progress);
    say(&format!(
        "{points} kill points, {rounds} rounds, {} failures, {:.0?}",
        failures.len(),
        began.elapsed()
    ));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Past the test harness' capture.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "kill points: {text}");
}

/// A node, its runtime, and the agent that was started last.
struct Bench<'a> {
    lab: &'a Lab,
    node: Node,
    runtime: Runtime,
    agent: Option<Agent>,
    random: Random,
}

/// What one round was.
struct Round {
    killed: Option<Killed>,
    calls: usize,
    outcome: Result<(), String>,
}

impl<'a> Bench<'a> {
    fn new(lab: &'a Lab, random: Random) -> Self {
        let pods = [lab.namespace("one"), lab.namespace("two")];
        Self { lab, node: Node::new(lab), runtime: Runtime::new(pods), agent: None, random }
    }

    fn sweep(&mut self, sweep: Sweep, numbers: Numbers, progress: &Mutex<Progress>) {
        let (began, mut points) = (Instant::now(), 0);
        let mut take = |bench: &mut Self, number: Option<usize>| {
            let round = bench.round(sweep, number);
            points += usize::from(round.killed.is_some());
            bench.count(sweep, number, &round, &mut lock(progress));
            round.calls
        };
        match numbers {
            Numbers::All => {
                let (mut number, mut behind) = (0, 0);
                while behind < BEHIND_THE_END && lock(progress).failures.len() < FAILURES_MAX {
                    number += 1;
                    behind = if take(self, Some(number)) < number { behind + 1 } else { 0 };
                }
            }
            Numbers::Some(many) => {
                let all = take(self, None);
                for part in 0..many {
                    let (first, end) = (part * all / many, (part + 1) * all / many);
                    let number = 1 + first + self.random.below(end - first);
                    take(self, Some(number));
                }
            }
        }
        let Sweep { workload: Workload { name, .. }, edge, turn } = sweep;
        say(&format!("{name}, {edge:?}, turn {turn}: {points} points in {:.1?}", began.elapsed()));
    }

    fn count(&mut self, sweep: Sweep, number: Option<usize>, round: &Round, progress: &mut Progress) {
        progress.rounds += 1;
        progress.points += usize::from(round.killed.is_some());
        let Err(what) = &round.outcome else { return };
        let place = round.killed.as_ref().map_or_else(|| "after its answer".to_owned(), Killed::to_string);
        let repair = repair(sweep, number);
        let failure = format!("{}, killed at {place}, then {repair:?}: {what}", sweep.workload.name);
        say(&failure);
        progress.failures.push(failure);
        // What is left of this node proves nothing more.
        *self = Self::new(self.lab, self.random.clone());
    }

    /// Kills an agent at the system call of this number, or after its answer.
    fn round(&mut self, sweep: Sweep, number: Option<usize>) -> Round {
        let mut round = Round { killed: None, calls: 0, outcome: Ok(()) };
        round.outcome = self.try_round(sweep, number, &mut round);
        round
    }

    fn try_round(&mut self, sweep: Sweep, number: Option<usize>, round: &mut Round) -> Result<(), String> {
        let Sweep { workload, edge, .. } = sweep;
        let (caller, point) = (self.node.caller(), number.map(|number| Point { number, edge }));
        self.runtime.rename_all();
        let agent = self.agent.take().unwrap_or_else(|| self.node.started_agent());
        for call in workload.before {
            self.runtime.must(*call, &caller)?;
        }
        let first = if workload.starting { Some(self.somewhere()) } else { point };
        let mut traced = self.kill_during(agent, first, workload, &caller);
        if workload.starting {
            let (pid, mut pipes) = self.node.agent().given_away();
            let started = kill_at(pid, point, move || pipes.start());
            let _ = started.work.join();
            (traced.killed, traced.calls) = (started.killed, started.calls);
        }
        (round.killed, round.calls) = (traced.killed, traced.calls);
        let mut agent = self.node.started_agent();
        // Calls that were not made yet when the agent was killed are served by this one.
        let lanes = traced.work.join().map_err(|_| "a caller failed")?;
        let told = |what: &'static str| move |error| format!("{what}: {error}");
        self.runtime.learn(&lanes)?;
        self.runtime.agrees(&self.node, &mut agent).map_err(told("after the restart"))?;
        let calls: Vec<Call> = workload.lanes.concat();
        self.runtime.repair(repair(sweep, number), &calls, &caller)?;
        self.runtime.agrees(&self.node, &mut agent).map_err(told("after the repair"))?;
        self.runtime.serves(&caller).map_err(told("after the repair"))?;
        self.runtime.delete_all(&caller)?;
        self.runtime.agrees(&self.node, &mut agent).map_err(told("after DEL of all"))?;
        self.runtime.serves(&caller).map_err(told("after DEL of all"))?;
        self.agent = Some(agent);
        Ok(())
    }

    fn kill_during(
        &self,
        agent: Agent,
        point: Option<Point>,
        workload: &Workload,
        caller: &Caller,
    ) -> Traced<Vec<Vec<(Call, Answer)>>> {
        type Prepared = Box<dyn FnOnce() -> Answer + Send>;
        let prepare = |call: &Call| (*call, Box::new(self.runtime.prepare(*call, caller)) as Prepared);
        let lanes: Vec<Vec<(Call, Prepared)>> =
            workload.lanes.iter().map(|lane| lane.iter().map(prepare).collect()).collect();
        let make = |lane: Vec<(Call, Prepared)>| {
            let mut answers = Vec::new();
            for (call, make) in lane {
                let answer = make();
                let failed = answer.is_err();
                answers.push((call, answer));
                if failed {
                    break;
                }
            }
            answers
        };
        // The agent ends with its standard input: it stays open.
        let (pid, _pipes) = agent.given_away();
        kill_at(pid, point, move || {
            thread::scope(|scope| {
                let calling: Vec<_> = lanes.into_iter().map(|lane| scope.spawn(move || make(lane))).collect();
                calling.into_iter().map(|lane| lane.join().expect("a caller")).collect()
            })
        })
    }

    /// A point of which most lie inside any workload.
    fn somewhere(&mut self) -> Point {
        Point { number: 1 + self.random.below(150), edge: Edge::Entry }
    }
}

/// What the runtime does after a point.
fn repair(sweep: Sweep, number: Option<usize>) -> Repair {
    const ALL: [Repair; 3] = [Repair::Again, Repair::Anew, Repair::Forget];
    ALL[(number.unwrap_or_default() + sweep.turn) % ALL.len()]
}
