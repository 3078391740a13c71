// SPDX-License-Identifier: Apache-2.0
//! Text in columns, as kubectl prints it.

/// Columns as wide as their widest cell, two spaces between, nothing behind the last.
pub(crate) fn render(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let lines = || std::iter::once(&head).chain(rows);
    let width =
        |column: usize| lines().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..head.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in lines() {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![
            vec!["east-control-plane".to_owned(), "yes".to_owned()],
            vec!["e".to_owned(), String::new()],
        ];

        assert_eq!(
            render(&["NODE", "READY"], &rows),
            "NODE                READY\neast-control-plane  yes\ne\n"
        );
    }
}
