// SPDX-License-Identifier: Apache-2.0
//! CoreDNS' Corefile with the clusterset's zone.
//!
//! The plugin `kubernetes` serves ServiceImports when its block has `multicluster <zone>` and the zone is among the
//! zones of the block (CoreDNS 1.12.2 and later).

use crate::plan::{Kind, ObjectKey, Plan};
use crate::snapshot::{Problem, Snapshot};

/// The clusterset's zone (KEP-1645, DNS specification).
pub const ZONE: &str = "clusterset.local";

/// The Corefile with the zone added; none if it is there already.
///
/// # Errors
/// There is no block of the plugin `kubernetes` to add it to.
pub fn with_clusterset(text: &str) -> Result<Option<String>, Problem> {
    let served = with_zone(text)?;
    let fresh = uncached(&served);
    Ok((fresh != text).then_some(fresh))
}

fn with_zone(text: &str) -> Result<String, Problem> {
    let lines: Vec<&str> = text.lines().collect();
    let refuse = |message: &str| Problem { reason: "NoKubernetesBlock", message: message.to_owned() };
    let start =
        lines.iter().position(|line| words(line).first() == Some(&"kubernetes")).ok_or_else(|| {
            refuse("the Corefile has no plugin `kubernetes`; serve clusterset.local some other way")
        })?;
    let head = words(lines[start]);
    let has_block = head.last() == Some(&"{");
    if !has_block && head.contains(&"{") {
        return Err(refuse(
            "the block of the plugin `kubernetes` is on one line; write each of its options on a line of its own",
        ));
    }
    let end = if has_block { block_end(&lines, start) } else { Some(start) };
    let end = end.ok_or_else(|| refuse("a block of the Corefile is not closed"))?;
    let served = lines[start..=end].iter().any(|line| {
        let words = words(line);
        words.first() == Some(&"multicluster") && words[1..].iter().any(|zone| is_zone(zone))
    });
    let listed = head.iter().any(|word| is_zone(word));
    if served && listed {
        return Ok(text.to_owned());
    }
    let indent: String = lines[start].chars().take_while(|c| c.is_whitespace()).collect();
    let mut new = vec![new_head(&indent, &head, listed)];
    if !served {
        new.push(format!("{indent}   multicluster {ZONE}"));
    }
    match has_block {
        true => new.extend(lines[start + 1..=end].iter().map(|line| (*line).to_owned())),
        false => new.push(format!("{indent}}}")),
    }
    Ok(spliced(text, &lines, start, end, &new))
}

/// The text with the lines `start..=end` replaced.
fn spliced(text: &str, lines: &[&str], start: usize, end: usize, new: &[String]) -> String {
    let before = lines[..start].iter().copied();
    let after = lines[end + 1..].iter().copied();
    let all: Vec<&str> = before.chain(new.iter().map(String::as_str)).chain(after).collect();
    let mut joined = all.join("\n");
    if text.ends_with('\n') {
        joined.push('\n');
    }
    joined
}

/// Where answers for cluster.local are not cached, those for the clusterset are not either: an import that was just
/// made must not hide behind an older "no such name".
fn uncached(text: &str) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for line in &mut lines {
        let words = words(line);
        let disables = words.first() == Some(&"disable") && words.contains(&"cluster.local");
        if disables && !words.iter().any(|word| is_zone(word)) {
            // Before a comment, which would swallow it.
            let (setting, comment) = line.split_at(line.find('#').unwrap_or(line.len()));
            let gap = if comment.is_empty() { "" } else { " " };
            *line = format!("{} {ZONE}{gap}{comment}", setting.trim_end());
        }
    }
    let mut joined = lines.join("\n");
    if text.ends_with('\n') {
        joined.push('\n');
    }
    joined
}

fn words(line: &str) -> Vec<&str> {
    line.split('#').next().unwrap_or_default().split_whitespace().collect()
}

fn is_zone(word: &str) -> bool {
    word.trim_end_matches('.') == ZONE
}

fn new_head(indent: &str, head: &[&str], listed: bool) -> String {
    let mut words: Vec<&str> = head.iter().copied().filter(|word| *word != "{").collect();
    if words.len() == 1 {
        // Without zones the plugin takes those of the server block; with one of ours it would lose them.
        words.push("cluster.local");
    }
    if !listed {
        // Before the reverse zones: the first zone stays the primary one.
        words.insert(2, ZONE);
    }
    format!("{indent}{} {{", words.join(" "))
}

fn block_end(lines: &[&str], start: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (at, line) in lines.iter().enumerate().skip(start) {
        for word in words(line) {
            match word {
                "{" => depth += 1,
                "}" => depth = depth.checked_sub(1)?,
                _ => {}
            }
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

pub(crate) fn plan(snapshot: &Snapshot, plan: &mut Plan) {
    let Some(corefile) = &snapshot.corefile else { return };
    // A Corefile that we cannot extend is somebody's own; their DNS keeps working as it is.
    let Ok(Some(text)) = with_clusterset(&corefile.text) else { return };
    let patch = serde_json::json!({
        "metadata": {"resourceVersion": corefile.version},
        "data": {"Corefile": text},
    });
    plan.merge.insert(ObjectKey::namespaced(Kind::ConfigMap, "kube-system", "coredns"), patch);
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBEADM: &str = ".:53 {\n    errors\n    cache 30 {\n       disable success cluster.local\n       disable denial cluster.local\n    }\n    kubernetes cluster.local in-addr.arpa ip6.arpa {\n       pods insecure\n       fallthrough in-addr.arpa ip6.arpa\n       ttl 30\n    }\n    forward . /etc/resolv.conf {\n       max_concurrent 1000\n    }\n    reload\n}\n";

    #[test]
    fn the_zone_is_added_after_the_primary_one_and_its_option_to_the_block() {
        let new = with_clusterset(KUBEADM).unwrap().unwrap();
        assert!(new.contains("    kubernetes cluster.local clusterset.local in-addr.arpa ip6.arpa {\n       multicluster clusterset.local\n       pods insecure\n"), "{new}");
        assert!(new.ends_with("    reload\n}\n"), "{new}");
    }

    #[test]
    fn answers_for_the_clusterset_are_cached_no_longer_than_those_for_the_cluster() {
        let new = with_clusterset(KUBEADM).unwrap().unwrap();
        assert!(new.contains("disable success cluster.local clusterset.local\n"), "{new}");
        assert!(new.contains("disable denial cluster.local clusterset.local\n"), "{new}");
    }

    #[test]
    fn a_corefile_that_has_the_zone_is_left_as_it_is() {
        let new = with_clusterset(KUBEADM).unwrap().unwrap();
        assert_eq!(with_clusterset(&new), Ok(None));
    }

    #[test]
    fn a_plugin_without_block_gets_one() {
        let new = with_clusterset(".:53 {\n  kubernetes cluster.local\n  reload\n}").unwrap().unwrap();
        assert_eq!(
            new,
            ".:53 {\n  kubernetes cluster.local clusterset.local {\n     multicluster clusterset.local\n  }\n  reload\n}"
        );
    }

    #[test]
    fn a_comment_does_not_swallow_the_zone() {
        let text = KUBEADM.replace("denial cluster.local", "denial cluster.local # fresh");
        let new = with_clusterset(&text).unwrap().unwrap();
        assert!(new.contains("disable denial cluster.local clusterset.local # fresh\n"), "{new}");
        assert_eq!(with_clusterset(&new), Ok(None), "another pass changes nothing");
    }

    #[test]
    fn a_block_on_one_line_is_left_alone_with_the_way_out() {
        let problem = with_clusterset(".:53 {\n kubernetes cluster.local { ttl 30 }\n}\n").unwrap_err();
        assert!(problem.message.contains("on a line of its own"), "{}", problem.message);
    }

    #[test]
    fn a_corefile_without_the_plugin_is_refused_with_the_reason() {
        let problem = with_clusterset(".:53 {\n  forward . 8.8.8.8 # kubernetes\n}\n").unwrap_err();
        assert!(problem.message.contains("no plugin `kubernetes`"));
    }
}
