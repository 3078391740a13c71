// SPDX-License-Identifier: Apache-2.0
//! A node's life at random: pods that come and go, several at once, are lost without DEL, are looked after and collected, while
//! agents are killed, stopped and started. After each turn nobody may hold an address too many or too few. Then one agent
//! lives on through as many turns, and may not grow.
//!
//! `ISTHMUS_SOAK_SECONDS` says for how long (`make soak`), and `ISTHMUS_SEED` what happens.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use isthmus_testkit::{Lab, within};

use super::node::{Agent, Answer, Caller, Node, Size};
use super::random::{Random, number_from, seed};
use super::runtime::{Call, Repair, Runtime};
use super::tracer::{Edge, Point, kill_at};

/// How long the run in `make test` is.
const SHORT_SECONDS: u64 = 20;
const PODS: usize = 16;
/// Calls at once.
const AT_ONCE: usize = 8;
/// System calls of an agent for one call of the runtime, about; a little more, so that some agents outlive what they are asked.
const SYSTEM_CALLS_EACH: usize = 120;
const SOON: Duration = Duration::from_secs(10);
/// What an agent may grow by for each call: less than the smallest thing that it could keep of one.
const GROWTH_BYTES_PER_CALL: u64 = 64;
/// What it may grow by in all: pages of its allocator's arenas.
const GROWTH_KIB: u64 = 2048;

#[test]
fn a_long_life_at_random_leaks_no_address_gives_none_twice_and_lets_no_process_grow() {
    let Some(lab) = Lab::new("soak") else { return };
    let (seed, seconds) = (seed(), number_from("ISTHMUS_SOAK_SECONDS").unwrap_or(SHORT_SECONDS));
    say(&format!("ISTHMUS_SEED={seed} ISTHMUS_SOAK_SECONDS={seconds}"));
    let half = Duration::from_secs(seconds) / 2;
    let mut soak = Soak::new(&lab, seed);
    let began = Instant::now();
    while began.elapsed() < half {
        soak.turn(true);
    }
    soak.end();
    say(&format!("{:?}", soak.tally));
    soak.lives_on(half);
    say(&format!("{:?}", soak.tally));
}

/// Past the test harness' capture.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "soak: {text}");
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    turns: u64,
    adds: u64,
    dels: u64,
    checks: u64,
    collections: u64,
    lost: u64,
    killed: u64,
    stopped: u64,
}

impl Tally {
    fn count(&mut self, calls: &[Call]) {
        let adds = calls.iter().filter(|call| matches!(call, Call::Add(_))).count() as u64;
        self.adds += adds;
        self.dels += calls.len() as u64 - adds;
    }
}

struct Soak<'a> {
    lab: &'a Lab,
    node: Node,
    runtime: Runtime,
    agent: Option<Agent>,
    random: Random,
    tally: Tally,
}

impl<'a> Soak<'a> {
    fn new(lab: &'a Lab, seed: u64) -> Self {
        let node = Node::wide(lab);
        let agent = Some(node.started_agent());
        let pods = (0..PODS).map(|number| lab.namespace(&format!("pod{number}")));
        let (runtime, random) = (Runtime::new(pods), Random::of(seed));
        Self { lab, node, runtime, agent, random, tally: Tally::default() }
    }

    /// One thing happens. `deadly`: agents may end.
    fn turn(&mut self, deadly: bool) {
        let (turn, choice) = (self.tally.turns, self.random.below(20));
        let outcome = match choice {
            0 => self.collect(),
            1 => self.lose(),
            2 => self.check(),
            3 if deadly => self.restart(Agent::kill),
            4 if deadly => self.restart(Agent::stop),
            5..=8 if deadly => self.calls_while_killed(),
            _ => self.calls(),
        };
        let outcome = outcome.and_then(|()| self.agrees());
        self.tally.turns += 1;
        outcome.unwrap_or_else(|error| panic!("turn {turn}, choice {choice}: {error}; {:?}", self.tally));
    }

    fn agrees(&mut self) -> Result<(), String> {
        let agent = self.agent.as_mut().ok_or("no agent runs")?;
        self.runtime.agrees(&self.node, agent)
    }

    fn caller(&self) -> Caller {
        self.node.caller()
    }

    /// Calls for some of the pods: DEL of those that are there, ADD of a new container of those that are not.
    fn choose(&mut self) -> Vec<Call> {
        let mut pods: Vec<usize> = (0..PODS).collect();
        let count = 1 + self.random.below(AT_ONCE);
        let mut calls = Vec::new();
        for _ in 0..count {
            let pod = pods.swap_remove(self.random.below(pods.len()));
            if self.runtime.is_added(pod) {
                calls.push(Call::Del(pod));
            } else {
                self.runtime.rename(pod);
                calls.push(Call::Add(pod));
            }
        }
        self.tally.count(&calls);
        calls
    }

    /// The calls, ready to be made at once.
    fn prepared(&self, calls: &[Call]) -> impl FnOnce() -> Vec<Vec<(Call, Answer)>> + Send + use<> {
        let caller = self.caller();
        let lanes: Vec<_> = calls.iter().map(|call| (*call, self.runtime.prepare(*call, &caller))).collect();
        move || {
            thread::scope(|scope| {
                let made: Vec<_> = lanes.into_iter().map(|(call, make)| (call, scope.spawn(make))).collect();
                made.into_iter().map(|(call, made)| vec![(call, made.join().expect("a caller"))]).collect()
            })
        }
    }

    fn calls(&mut self) -> Result<(), String> {
        let calls = self.choose();
        let lanes = self.prepared(&calls)();
        if let Some((call, Err(printed))) = lanes.iter().flatten().find(|(_, answer)| answer.is_err()) {
            return Err(format!("{call:?} failed: {printed}"));
        }
        self.runtime.learn(&lanes)
    }

    /// The agent is killed in the midst of them, and the runtime does something about what it is not sure of.
    fn calls_while_killed(&mut self) -> Result<(), String> {
        let calls = self.choose();
        let number = 1 + self.random.below(calls.len() * SYSTEM_CALLS_EACH);
        let edge = if self.random.below(2) == 0 { Edge::Entry } else { Edge::Exit };
        // The agent ends with its standard input: it stays open.
        let (pid, _pipes) = self.agent.take().ok_or("no agent runs")?.given_away();
        let traced = kill_at(pid, Some(Point { number, edge }), self.prepared(&calls));
        self.tally.killed += 1;
        self.agent = Some(self.node.started_agent());
        let lanes = traced.work.join().map_err(|_| "a caller failed")?;
        self.runtime.learn(&lanes)?;
        self.agrees().map_err(|error| format!("after the restart: {error}"))?;
        let repair = [Repair::Again, Repair::Anew, Repair::Forget][self.random.below(3)];
        self.runtime.repair(repair, &calls, &self.caller())
    }

    fn restart(&mut self, end: fn(Agent)) -> Result<(), String> {
        end(self.agent.take().ok_or("no agent runs")?);
        self.tally.stopped += 1;
        self.agent = Some(self.node.started_agent());
        Ok(())
    }

    fn collect(&mut self) -> Result<(), String> {
        self.tally.collections += 1;
        self.runtime.collect(&self.caller())
    }

    fn check(&mut self) -> Result<(), String> {
        self.tally.checks += 1;
        self.runtime.serves(&self.caller())
    }

    /// A container goes without DEL, and its address with the next GC.
    fn lose(&mut self) -> Result<(), String> {
        let pod = self.random.below(PODS);
        if !self.runtime.is_added(pod) {
            return Ok(());
        }
        self.tally.lost += 1;
        self.runtime.lose(pod, self.lab.namespace(&format!("pod{pod}")));
        self.collect()
    }

    /// All pods go, and nothing is left of them.
    fn end(&mut self) {
        let caller = self.caller();
        self.runtime.delete_all(&caller).unwrap_or_else(|error| panic!("{error}"));
        within(SOON, || self.agrees());
        self.runtime.serves(&caller).unwrap_or_else(|error| panic!("{error}"));
        let ledger = self.agent.as_mut().expect("an agent").ledger().expect("an answer");
        let left = (ledger.held, ledger.in_use, self.node.journal(), self.node.links());
        assert!(left.0.is_empty() && left.1 == 0, "{left:?}");
        assert!(left.2.as_ref().is_ok_and(|held| held.is_empty()) && left.3.is_empty(), "{left:?}");
    }

    /// One agent; what it and the data plane take up without pods at each quarter of the time.
    fn lives_on(&mut self, time: Duration) {
        let began = Instant::now();
        let mut seen = Vec::new();
        for quarter in 1..=4 {
            while began.elapsed() < time * quarter / 4 {
                self.turn(false);
            }
            self.end();
            let now = (self.tally.adds + self.tally.dels, self.sizes());
            say(&format!("after {} calls: agent {:?}, data plane {:?}", now.0, now.1[0], now.1[1]));
            seen.push(now);
        }
        // By the second quarter every thread has done everything once.
        let (calls, before) = seen[1];
        let calls = self.tally.adds + self.tally.dels - calls;
        // What is still under way for the last call (a connection that is being closed) is soon over.
        within(SOON, || {
            let mut growths = ["agent", "data plane"].into_iter().zip(before).zip(self.sizes());
            growths.try_for_each(|((what, before), after)| grew_not(what, before, after, calls))
        });
    }

    /// Of the agent and of the data plane.
    fn sizes(&self) -> [Size; 2] {
        [self.agent.as_ref().expect("an agent").size(), self.node.dataplane_size()]
    }
}

fn grew_not(what: &str, before: Size, after: Size, calls: u64) -> Result<(), String> {
    let most_kib = before.memory_kib + GROWTH_KIB + calls * GROWTH_BYTES_PER_CALL / 1024;
    if after.memory_kib <= most_kib && after.descriptors <= before.descriptors {
        return Ok(());
    }
    Err(format!("{what}: {before:?}, then {after:?} after {calls} calls"))
}
