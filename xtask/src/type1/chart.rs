// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A bar chart as SVG: groups of horizontal bars, each in two pieces.

use std::fmt::Write;

/// A bar, in units of which the kernel alone has one.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub(super) name: &'static str,
    pub(super) guest: f64,
    pub(super) hypervisor: f64,
}

/// Bars that belong together.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) bars: Vec<Bar>,
}

const WIDTH: f64 = 760.0;
const LEFT: f64 = 170.0;
const RIGHT: f64 = 60.0;
const TOP: f64 = 40.0;
const BAR: f64 = 14.0;
const GAP: f64 = 12.0;
const GUEST: &str = "#4c78a8";
const HYPERVISOR: &str = "#e45756";

/// Draws them.
pub(super) fn draw(groups: &[Group]) -> String {
    let bars = || groups.iter().flat_map(|group| &group.bars);
    let longest = bars()
        .map(|bar| bar.guest + bar.hypervisor)
        .fold(1.0, f64::max);
    let unit = (WIDTH - LEFT - RIGHT) / longest;
    let height = TOP + bars().count() as f64 * BAR + groups.len() as f64 * GAP + 20.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (x, colour, what) in [
        (LEFT, GUEST, "instructions of the guest"),
        (
            LEFT + 190.0,
            HYPERVISOR,
            "of the hypervisor; the kernel alone is 1",
        ),
    ] {
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"12\" width=\"10\" height=\"10\" fill=\"{colour}\"/><text x=\"{}\" y=\"21\">{what}</text>",
            x + 15.0
        );
    }
    let mut y = TOP;
    for group in groups {
        let middle = y + group.bars.len() as f64 * BAR / 2.0 + 4.0;
        let _ = writeln!(out, "<text x=\"8\" y=\"{middle:.0}\">{}</text>", group.name);
        for bar in &group.bars {
            let (guest, hypervisor) = (bar.guest * unit, bar.hypervisor * unit);
            let text = y + BAR - 4.0;
            let _ = writeln!(
                out,
                "<text x=\"{:.0}\" y=\"{text:.0}\" text-anchor=\"end\">{}</text>\
                 <rect x=\"{LEFT}\" y=\"{y}\" width=\"{guest:.1}\" height=\"{h}\" fill=\"{GUEST}\"/>\
                 <rect x=\"{:.1}\" y=\"{y}\" width=\"{hypervisor:.1}\" height=\"{h}\" fill=\"{HYPERVISOR}\"/>\
                 <text x=\"{:.1}\" y=\"{text:.0}\">{:.2}</text>",
                LEFT - 5.0,
                bar.name,
                LEFT + guest,
                LEFT + guest + hypervisor + 4.0,
                bar.guest + bar.hypervisor,
                h = BAR - 2.0
            );
            y += BAR;
        }
        y += GAP;
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_in_proportion_and_the_longest_fills_the_width() {
        let bar = |name, guest, hypervisor| Bar {
            name,
            guest,
            hypervisor,
        };
        let drawn = draw(&[Group {
            name: "boot".to_owned(),
            bars: vec![bar("alone", 1.0, 0.0), bar("shadow", 1.0, 3.0)],
        }]);
        let full = WIDTH - LEFT - RIGHT;
        for width in [full / 4.0, full * 3.0 / 4.0] {
            assert!(drawn.contains(&format!("width=\"{width:.1}\"")), "{drawn}");
        }
        assert!(
            drawn.contains(">4.00<") && drawn.contains(">boot<"),
            "{drawn}"
        );
    }
}
