//! Tables of finch's own making: aligned by display width, and narrowed to the terminal they are for.

use crate::text;

/// How a table of N columns is set; columns are numbered from 0.
pub struct Layout<'a> {
    /// Set flush right.
    pub right: &'a [usize],
    /// May be left out where there is no room, the least important one first.
    pub spare: &'a [usize],
    /// The last column is not cut below this width before others are left out.
    pub least: usize,
}

/// Columns two blanks apart, the head first; cells are safe for a terminal. `columns`: of the terminal; None: in full.
pub fn table<const N: usize>(cells: &[[String; N]], layout: &Layout, columns: Option<usize>) -> String {
    let mut widths = [0; N];
    for row in cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(text::width(cell));
        }
    }
    let mut shown: Vec<usize> = (0..N).collect();
    if let (Some(columns), Some(last)) = (columns, N.checked_sub(1)) {
        let taken = |shown: &[usize]| shown.iter().filter(|&&c| c != last).map(|&c| widths[c] + 2).sum::<usize>();
        for column in layout.spare {
            if taken(&shown) + widths[last].min(layout.least) <= columns {
                break;
            }
            shown.retain(|c| c != column);
        }
        widths[last] = widths[last].min(columns.saturating_sub(taken(&shown)));
    }
    let mut out = String::new();
    for row in cells {
        let mut line = String::new();
        for &column in &shown {
            let width = widths[column];
            let cell = match text::width(&row[column]) > width {
                true => text::one_line(&row[column], width),
                false => row[column].clone(),
            };
            let pad = " ".repeat(width.saturating_sub(text::width(&cell)));
            let (before, after) =
                if layout.right.contains(&column) { (pad, String::new()) } else { (String::new(), pad) };
            line += &format!("{before}{cell}{after}  ");
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(columns: Option<usize>) -> Vec<String> {
        let cells =
            [["name", "n", "time", "about"], ["one", "1", "14:30", "first of all"], ["twenty", "20", "14:31", "更多"]];
        let layout = Layout { right: &[1], spare: &[2, 1], least: 8 };
        table(&cells.map(|row| row.map(String::from)), &layout, columns).lines().map(String::from).collect()
    }

    #[test]
    fn a_table_is_aligned_in_full() {
        let full = ["name     n  time   about", "one      1  14:30  first of all", "twenty  20  14:31  更多"];
        assert_eq!(shown(None), full);
        assert_eq!(shown(Some(31)), full);
    }

    #[test]
    fn a_narrow_terminal_gets_the_important_columns() {
        assert_eq!(
            shown(Some(28)),
            ["name     n  time   about", "one      1  14:30  first of…", "twenty  20  14:31  更多"]
        );
        assert_eq!(shown(Some(26)), ["name     n  about", "one      1  first of all", "twenty  20  更多"]);
        assert_eq!(shown(Some(16)), ["name    about", "one     first o…", "twenty  更多"]);
        assert_eq!(shown(Some(3)), ["name", "one", "twenty"]);
        for columns in 10..40 {
            assert!(shown(Some(columns)).iter().all(|row| text::width(row) <= columns), "{columns}");
        }
    }
}
