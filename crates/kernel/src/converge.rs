// SPDX-License-Identifier: Apache-2.0
//! The one place that knows in which order the kernel's tables change.

use std::collections::BTreeMap;
use std::io;

use isthmus_delta::Outcome;
use isthmus_model::kernel::Desired;
use isthmus_model::nft::Ruleset;

use crate::addr::{self, Addresses};
use crate::fdb::Forwarding;
use crate::link::Links;
use crate::neigh::Neighbours;
use crate::nft::{Nft, NftError};
use crate::route::{self, Routes};
use crate::rule::{self, Rules};
use crate::sysctl;
use crate::table::{Table, Tracked};
use crate::wire::Wire;

/// What became of one convergence: entries are named in words ("route 10.0.0.0/8 table 254 metric 0").
pub type Outcomes = Outcome<String>;

/// Adds what became of one table.
fn take<K: Ord>(
    out: &mut Outcomes,
    table: &str,
    result: io::Result<Outcome<K>>,
    name: impl Fn(&K) -> String,
) {
    match result {
        Ok(outcome) => out.absorb(outcome, name),
        Err(error) => fail(out, table, error),
    }
}

fn fail(out: &mut Outcomes, what: &str, error: impl ToString) {
    out.failed.insert(what.to_owned(), error.to_string());
}

/// Proof that every watch has listed once: before that, "not wanted" may only mean "not heard of yet", and nothing may
/// be taken away. Only the watch layer has a reason to make one.
#[derive(Clone, Copy, Debug)]
pub struct InSync(());

impl InSync {
    /// Every watch has listed at least once.
    pub fn all_listed() -> Self {
        Self(())
    }
}

/// The tables of one network namespace, with what is known to be in them.
pub(crate) struct Tables {
    wire: Wire,
    nft: Nft,
    links: Links,
    addresses: Tracked<Addresses>,
    routes: Tracked<Routes>,
    rules: Tracked<Rules>,
    neighbours: Tracked<Neighbours>,
    forwarding: Tracked<Forwarding>,
    /// Settings that were read, or written, since the tables were.
    settings: BTreeMap<String, String>,
    observed: bool,
}

impl Tables {
    pub(crate) fn new(wire: Wire, nft: Nft) -> Self {
        Self {
            wire,
            nft,
            links: Links::default(),
            addresses: Tracked::default(),
            routes: Tracked::default(),
            rules: Tracked::default(),
            neighbours: Tracked::default(),
            forwarding: Tracked::default(),
            settings: BTreeMap::new(),
            observed: false,
        }
    }

    pub(crate) fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    pub(crate) fn replace_nft(&mut self, nft: Nft) {
        self.nft = nft;
    }

    pub(crate) fn arm(&mut self, base: &Ruleset) -> Result<(), NftError> {
        self.nft.arm(base)
    }

    /// Reads every table, then does what `advance` does.
    pub(crate) fn converge(&mut self, want: &Desired, sync: InSync) -> Outcomes {
        let mut out = Outcomes::default();
        self.observe(&mut out);
        self.apply(want, Some(sync), &mut out);
        out
    }

    /// Reads every table, makes what is missing and changes what differs. Takes nothing away.
    pub(crate) fn complete(&mut self, want: &Desired) -> Outcomes {
        let mut out = Outcomes::default();
        self.observe(&mut out);
        self.apply(want, None, &mut out);
        out
    }

    /// Brings the tables from what is remembered to what is wanted.
    pub(crate) fn advance(&mut self, want: &Desired, sync: InSync) -> Outcomes {
        if !self.observed {
            return self.converge(want, sync);
        }
        let mut out = Outcomes::default();
        self.apply(want, Some(sync), &mut out);
        out
    }

    fn observe(&mut self, out: &mut Outcomes) {
        let Self { wire, links, .. } = self;
        let mut read = |what: &str, result: io::Result<()>| result.unwrap_or_else(|e| fail(out, what, e));
        read("read links", links.observe(wire));
        let all = links.names(|_| true);
        let vxlan = links.names(|link| link.is_our_vxlan());
        read("read addresses", self.addresses.observe(wire, &all));
        read("read routes", self.routes.observe(wire, &all));
        read("read rules", self.rules.observe(wire, &all));
        read("read neighbours", self.neighbours.observe(wire, &vxlan));
        read("read forwarding entries", self.forwarding.observe(wire, &vxlan));
        if let Err(error) = self.nft.observe() {
            fail(out, "read nftables", chain(&error));
        }
        self.settings.clear();
        self.observed = true;
    }

    /// Close before taking away, create before referring, open last. Without proof that all is known, nothing is taken away.
    fn apply(&mut self, want: &Desired, sync: Option<InSync>, out: &mut Outcomes) {
        let wire = &mut self.wire;
        let rules = self.rules.diff(&rule::wanted(&want.rules), sync);
        let routes = self.routes.diff(&route::canonical(&want.routes), sync);
        let addresses = self.addresses.diff(&addr::wanted(&want.addresses), sync);
        let neighbours = self.neighbours.diff(&want.neighbours, sync);
        let forwarding = self.forwarding.diff(&want.fdb, sync);

        // Close: what leads somewhere goes before what it leads through.
        take(out, "rules", self.rules.apply_removals(wire, &rules), Rules::name);
        take(out, "routes", self.routes.apply_removals(wire, &routes), Routes::name);

        // One transaction: it closes and opens at once, and the links that it names need not exist.
        match self.nft.apply(&want.nft) {
            Ok(changed) => out.changed += usize::from(changed),
            Err(error) => fail(out, "nftables", chain(&error)),
        }

        take(out, "neighbours", self.neighbours.apply_removals(wire, &neighbours), Neighbours::name);
        take(out, "forwarding", self.forwarding.apply_removals(wire, &forwarding), Forwarding::name);
        take(out, "addresses", self.addresses.apply_removals(wire, &addresses), Addresses::name);
        let gone = match sync {
            Some(_) => self.links.apply_removals(wire, &want.links),
            None => Ok(Outcome::default()),
        };
        let remade = gone.as_ref().is_ok_and(|outcome| outcome.changed > 0);
        take(out, "links", gone, |link| format!("link {link}"));

        // Create: what others refer to.
        let put = self.links.apply_puts(wire, &want.links);
        if remade || put.as_ref().map_or(true, |outcome| outcome.changed > 0) {
            // A new link has the settings of new links.
            self.settings.clear();
        }
        take(out, "links", put, |link| format!("link {link}"));
        let set = sysctl::apply(&want.sysctls, &mut self.settings);
        take(out, "sysctls", Ok(set), |path| format!("setting {path}"));
        take(out, "addresses", self.addresses.apply_puts(wire, &addresses), Addresses::name);
        take(out, "forwarding", self.forwarding.apply_puts(wire, &forwarding), Forwarding::name);
        take(out, "neighbours", self.neighbours.apply_puts(wire, &neighbours), Neighbours::name);

        // Open.
        take(out, "routes", self.routes.apply_puts(wire, &routes), Routes::name);
        take(out, "rules", self.rules.apply_puts(wire, &rules), Rules::name);

        // A link that was made anew took its entries with it: they are observed as missing by the next pass.
        self.observed &= !remade;
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
