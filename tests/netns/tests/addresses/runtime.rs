// SPDX-License-Identifier: Apache-2.0
//! What a container runtime knows of its containers, and whether agent, journal and kernel agree with it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use isthmus_testkit::Namespace;
use serde_json::Value;

use super::node::{Agent, Answer, Caller, Held, IFNAME, Node, addresses, links};

/// A call for one of the runtime's pods, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Add(usize),
    Del(usize),
    /// GC that keeps this pod and no other.
    Keep(usize),
}

/// What a runtime does about a pod of which it does not know how its call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repair {
    /// The same call again.
    Again,
    /// DEL, and ADD of another container for the pod.
    Anew,
    /// Nothing: the container is not among those that the next GC keeps.
    Forget,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Absent,
    /// A call for it was not answered with success.
    Unsure,
    /// With this result of ADD.
    Added(Value),
}

struct Pod {
    namespace: Namespace,
    container: String,
    state: State,
}

/// The runtime.
pub(crate) struct Runtime {
    pods: Vec<Pod>,
    containers: usize,
}

impl Runtime {
    pub(crate) fn new(pods: impl IntoIterator<Item = Namespace>) -> Self {
        let pod = |namespace| Pod { namespace, container: String::new(), state: State::Absent };
        let mut runtime = Self { pods: pods.into_iter().map(pod).collect(), containers: 0 };
        (0..runtime.pods.len()).for_each(|pod| runtime.rename(pod));
        runtime
    }

    /// The pod's container from now on is another one.
    pub(crate) fn rename(&mut self, pod: usize) {
        self.containers += 1;
        self.pods[pod].container = format!("c{}", self.containers);
    }

    /// All pods' containers from now on are others.
    pub(crate) fn rename_all(&mut self) {
        (0..self.pods.len()).for_each(|pod| self.rename(pod));
    }

    /// Whether the pod was added, as far as the runtime knows.
    pub(crate) fn is_added(&self, pod: usize) -> bool {
        matches!(self.pods[pod].state, State::Added(_))
    }

    /// The pod's container goes with its network and without DEL; the next GC is told so.
    pub(crate) fn lose(&mut self, pod: usize, empty: Namespace) {
        self.pods[pod].namespace = empty;
        self.pods[pod].state = State::Unsure;
    }

    /// The call, to be made by another thread.
    pub(crate) fn prepare(&self, call: Call, caller: &Caller) -> impl FnOnce() -> Answer + Send + use<> {
        let (Call::Add(number) | Call::Del(number) | Call::Keep(number)) = call;
        let pod = &self.pods[number];
        let (container, path, caller): (String, PathBuf, Caller) =
            (pod.container.clone(), pod.namespace.path(), caller.clone());
        move || match call {
            Call::Add(_) => caller.add(&container, &path),
            Call::Del(_) => caller.del(&container),
            Call::Keep(_) => caller.gc([&container]),
        }
    }

    /// Takes in how calls ended that were made at once: each lane is one call after the other.
    pub(crate) fn learn(&mut self, lanes: &[Vec<(Call, Answer)>]) -> Result<(), String> {
        for number in 0..self.pods.len() {
            let mut states: Vec<State> = Vec::new();
            for lane in lanes {
                let about = lane.iter().filter_map(|(call, answer)| learned(*call, answer, number));
                // A call that was not answered leaves all open, whatever was answered after it.
                let state = about.reduce(|before, now| if before == State::Unsure { before } else { now });
                states.extend(state);
            }
            let Some(first) = states.first() else { continue };
            let agree = states.iter().all(|state| match (first, state) {
                (State::Added(one), State::Added(other)) => addresses(one) == addresses(other),
                (one, other) => one == other,
            });
            if !agree && states.iter().all(|state| matches!(state, State::Added(_))) {
                return Err(format!("one container was given different addresses: {states:?}"));
            }
            self.pods[number].state = if agree { first.clone() } else { State::Unsure };
        }
        Ok(())
    }

    /// The call is made, and must succeed.
    pub(crate) fn must(&mut self, call: Call, caller: &Caller) -> Result<(), String> {
        let answer = self.prepare(call, caller)();
        if let Err(printed) = &answer {
            return Err(format!("{call:?} failed: {printed}"));
        }
        self.learn(&[vec![(call, answer)]])
    }

    /// Does what a runtime does about the pods that it is not sure of. `calls` are those that were made.
    pub(crate) fn repair(&mut self, how: Repair, calls: &[Call], caller: &Caller) -> Result<(), String> {
        let unsure = |pod: &Pod| pod.state == State::Unsure;
        if how == Repair::Forget {
            return self.collect(caller);
        }
        for number in 0..self.pods.len() {
            if !unsure(&self.pods[number]) {
                continue;
            }
            let only_added = calls.iter().all(|call| match call {
                Call::Add(_) => true,
                Call::Del(gone) => *gone != number,
                Call::Keep(kept) => *kept == number,
            });
            if how == Repair::Again && only_added {
                self.must(Call::Add(number), caller)?;
                continue;
            }
            self.must(Call::Del(number), caller)?;
            if how == Repair::Anew {
                self.rename(number);
                self.must(Call::Add(number), caller)?;
            }
        }
        Ok(())
    }

    /// GC that keeps every pod that was added; of the others none is there after it.
    pub(crate) fn collect(&mut self, caller: &Caller) -> Result<(), String> {
        let added = self.pods.iter().filter(|pod| matches!(pod.state, State::Added(_)));
        let added: Vec<&String> = added.map(|pod| &pod.container).collect();
        caller.gc(added).map_err(|printed| format!("GC failed: {printed}"))?;
        let unsure = self.pods.iter_mut().filter(|pod| pod.state == State::Unsure);
        unsure.for_each(|pod| pod.state = State::Absent);
        Ok(())
    }

    /// Whether nobody holds an address that the runtime does not know of, nobody lost one, and none is given twice. With
    /// pods that the runtime is not sure of, these may hold addresses, on which agent, journal and kernel must agree.
    pub(crate) fn agrees(&self, node: &Node, agent: &mut Agent) -> Result<(), String> {
        let (ledger, journal, links) = (agent.ledger()?, node.journal()?, node.links());
        if ledger.held != journal {
            return Err(format!("the ledger holds {:?}, its journal {journal:?}", ledger.held));
        }
        if ledger.links != links {
            return Err(format!("the kernel has the links {links:?}, the ledger {:?}", ledger.held));
        }
        let all: Vec<&String> = ledger.held.values().flatten().collect();
        let distinct: BTreeSet<&String> = all.iter().copied().collect();
        if distinct.len() != all.len() {
            return Err(format!("an address is given twice: {:?}", ledger.held));
        }
        if ledger.in_use != all.len() as u64 {
            return Err(format!(
                "{} addresses are in use; the ledger holds {:?}",
                ledger.in_use, ledger.held
            ));
        }
        let mut unexplained = ledger.held.clone();
        for pod in &self.pods {
            let held = unexplained.remove(&pod.container);
            match (&pod.state, held) {
                (State::Added(result), held) if held.as_ref() != Some(&addresses(result)) => {
                    let was = addresses(result);
                    return Err(format!("{} was given {was:?} and holds {held:?}", pod.container));
                }
                (State::Absent, Some(held)) => {
                    return Err(format!("{} is gone and holds {held:?}", pod.container));
                }
                _ => {}
            }
        }
        if unexplained.is_empty() { Ok(()) } else { Err(format!("leaked: {unexplained:?}")) }
    }

    /// Whether every pod's link is as ADD said, and no pod has a link that it should not have.
    pub(crate) fn serves(&self, caller: &Caller) -> Result<(), String> {
        for pod in &self.pods {
            let linked = links(&pod.namespace).contains(IFNAME);
            match &pod.state {
                State::Added(result) => {
                    let checked = caller.check(&pod.container, &pod.namespace.path(), result);
                    checked.map_err(|printed| format!("CHECK of {} failed: {printed}", pod.container))?;
                }
                _ if linked => return Err(format!("{} still has its {IFNAME}", pod.container)),
                _ => {}
            }
        }
        Ok(())
    }

    /// DEL of all that is there.
    pub(crate) fn delete_all(&mut self, caller: &Caller) -> Result<(), String> {
        for number in 0..self.pods.len() {
            if self.pods[number].state != State::Absent {
                self.must(Call::Del(number), caller)?;
            }
        }
        Ok(())
    }

    /// What pods were given that were added.
    pub(crate) fn held(&self) -> Held {
        let added = self.pods.iter().filter_map(|pod| match &pod.state {
            State::Added(result) => Some((pod.container.clone(), addresses(result))),
            _ => None,
        });
        added.collect::<BTreeMap<_, _>>()
    }
}

/// What a call says of the pod; none if it is about others.
fn learned(call: Call, answer: &Answer, pod: usize) -> Option<State> {
    match (call, answer) {
        (Call::Add(number), Ok(result)) if number == pod => Some(State::Added(result.clone())),
        (Call::Del(number), Ok(_)) if number == pod => Some(State::Absent),
        (Call::Keep(number), Ok(_)) if number != pod => Some(State::Absent),
        (Call::Keep(number), _) if number == pod => None,
        (Call::Add(number) | Call::Del(number), _) if number != pod => None,
        _ => Some(State::Unsure),
    }
}
