// SPDX-License-Identifier: Apache-2.0
//! Tables, and the document that they are written into.

use std::path::Path;

use anyhow::{Context, Result};

/// A table of Markdown.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut text = line(head.iter().map(|&cell| cell.to_owned()).collect());
    let mut rule = vec!["---".to_owned()];
    rule.resize(head.len(), "---:".to_owned());
    text += &line(rule);
    for row in rows {
        text += &line(row.clone());
    }
    text
}

/// Writes `text` between the markers of the section; all else in the document stays.
///
/// # Errors
/// The document cannot be read or written, or has no such markers.
pub(crate) fn replace_section(document: &Path, section: &str, text: &str) -> Result<()> {
    let old =
        std::fs::read_to_string(document).with_context(|| format!("cannot read {}", document.display()))?;
    let new = with_section(&old, section, text).with_context(|| {
        format!(
            "{} has no markers <!-- {section}: begin --> and <!-- {section}: end -->; put them where the results belong",
            document.display()
        )
    })?;
    std::fs::write(document, new).with_context(|| format!("cannot write {}", document.display()))
}

fn with_section(document: &str, section: &str, text: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- {section}: begin -->\n"), format!("<!-- {section}: end -->"));
    let from = document.find(&begin)? + begin.len();
    let to = from + document[from..].find(&end)?;
    Some(format!("{}{}\n{}", &document[..from], text.trim_end(), &document[to..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_of_the_section_changes() {
        let document = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n<!-- y: begin -->\n<!-- y: end -->\n";

        let once = with_section(document, "x", "new\n").unwrap();

        assert_eq!(
            once,
            "a\n<!-- x: begin -->\nnew\n<!-- x: end -->\nb\n<!-- y: begin -->\n<!-- y: end -->\n"
        );
        assert_eq!(with_section(&once, "x", "new").unwrap(), once);
        assert_eq!(with_section(document, "z", "new"), None);
    }

    #[test]
    fn a_table_has_a_rule_below_its_head() {
        let text = table(&["what", "ms"], &[vec!["ours".into(), "1.0".into()]]);
        assert_eq!(text, "| what | ms |\n| --- | ---: |\n| ours | 1.0 |\n");
    }
}
