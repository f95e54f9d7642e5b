// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pictures: boxes, words and lines, as SVG that stands alone.

use std::fmt::Write;

/// The height of a line of words.
pub(crate) const LINE: u32 = 18;

/// About how wide a character is.
pub(crate) const CHARACTER: u32 = 8;

/// A picture in the making. Lengths are in pixels, from the upper left corner.
#[derive(Debug, Default)]
pub(crate) struct Svg {
    body: String,
    width: u32,
    height: u32,
}

/// What a box means, which is its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tint {
    /// Hardware that translates, a table.
    Unit,
    /// A device.
    Device,
    /// Memory that may be written.
    Memory,
    /// Memory that may be read only.
    ReadOnly,
    /// Something is wrong.
    Wrong,
}

impl Tint {
    fn fill(self) -> &'static str {
        match self {
            Tint::Unit => "#dbe9f6",
            Tint::Device => "#f4f4f4",
            Tint::Memory => "#d9ead3",
            Tint::ReadOnly => "#fff2cc",
            Tint::Wrong => "#f4cccc",
        }
    }
}

impl Svg {
    /// A box.
    pub(crate) fn rectangle(&mut self, x: u32, y: u32, width: u32, height: u32, tint: Tint) {
        self.grow(x.saturating_add(width), y.saturating_add(height));
        self.put(format_args!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"3\" fill=\"{}\" stroke=\"#555\"/>",
            tint.fill()
        ));
    }

    /// A stroke down, such as a moment on a line of time.
    pub(crate) fn mark(&mut self, x: u32, y: u32, height: u32) {
        self.grow(x.saturating_add(2), y.saturating_add(height));
        self.put(format_args!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"2\" height=\"{height}\" fill=\"#c00000\"/>"
        ));
    }

    /// Words on a line, from `x` on, in a line that begins at `y`.
    pub(crate) fn words(&mut self, x: u32, y: u32, words: &str) {
        let count = u32::try_from(words.chars().count()).unwrap_or(u32::MAX);
        let width = count.saturating_mul(CHARACTER).min(4000);
        self.grow(x.saturating_add(width), y.saturating_add(LINE));
        let base = y.saturating_add(LINE - 5);
        self.put(format_args!(
            "<text x=\"{x}\" y=\"{base}\">{}</text>",
            escaped(words)
        ));
    }

    /// A box with lines of words in it, each cut to the box's width; its height.
    pub(crate) fn label(
        &mut self,
        x: u32,
        y: u32,
        width: u32,
        tint: Tint,
        lines: &[String],
    ) -> u32 {
        let count = u32::try_from(lines.len().max(1)).unwrap_or(u32::MAX);
        let height = LINE.saturating_mul(count).saturating_add(6);
        self.rectangle(x, y, width, height, tint);
        let (left, top) = (x.saturating_add(6), y.saturating_add(3));
        for (line, y) in lines.iter().zip((top..).step_by(LINE as usize)) {
            self.words(left, y, &cut(line, width.saturating_sub(12)));
        }
        height
    }

    /// A line from one point to another, bent so that it leaves and arrives sideways.
    pub(crate) fn line(&mut self, from: (u32, u32), to: (u32, u32)) {
        let ((x, y), (u, v)) = (from, to);
        let middle = x.midpoint(u);
        self.put(format_args!(
            "<path d=\"M{x} {y} C{middle} {y} {middle} {v} {u} {v}\" fill=\"none\" stroke=\"#777\"/>"
        ));
    }

    /// The whole picture.
    pub(crate) fn finish(self) -> String {
        let [width, height] = [self.width, self.height].map(|side| side.saturating_add(12));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"DejaVu Sans Mono, monospace\" font-size=\"12\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n{}</svg>\n",
            self.body
        )
    }

    fn grow(&mut self, x: u32, y: u32) {
        self.width = self.width.max(x);
        self.height = self.height.max(y);
    }

    fn put(&mut self, element: std::fmt::Arguments<'_>) {
        // A string takes what is written to it.
        let _ = writeln!(self.body, "{element}");
    }
}

/// As much of `words` as `width` holds, with an ellipsis where some is left out.
fn cut(words: &str, width: u32) -> String {
    // Four characters of the font are 29 wide; `CHARACTER` leaves room for wider ones.
    let most = usize::try_from(width.saturating_mul(4) / 29).unwrap_or(usize::MAX);
    if words.chars().count() <= most {
        return words.to_owned();
    }
    let kept = words.chars().take(most.saturating_sub(1));
    kept.chain(['\u{2026}']).collect()
}

/// Words as XML has them: files are not trusted to hold none of its signs, nor control characters.
fn escaped(words: &str) -> String {
    let mut text = String::with_capacity(words.len());
    for character in words.chars() {
        match character {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '"' => text.push_str("&quot;"),
            // XML has neither control characters nor these two, which are no characters.
            '\u{fffe}' | '\u{ffff}' => text.push('\u{fffd}'),
            character if character.is_control() => text.push('\u{fffd}'),
            character => text.push(character),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_file_cannot_end_an_element() {
        let mut svg = Svg::default();
        svg.words(0, 0, "</text><script>\u{1b}\u{fffe}\u{ffff}&");
        let text = svg.finish();
        assert!(
            text.contains(">&lt;/text&gt;&lt;script&gt;\u{fffd}\u{fffd}\u{fffd}&amp;</text>"),
            "{text}"
        );
    }

    #[test]
    fn words_stay_in_their_box() {
        assert_eq!(cut("12345678", 2 * 29), "12345678");
        assert_eq!(cut("12345678", 2 * 29 - 1), "123456\u{2026}");
        assert_eq!(cut("12", 0), "\u{2026}");
        let mut svg = Svg::default();
        svg.label(0, 0, 12 + 29, Tint::Wrong, &["level 2".into()]);
        assert!(svg.finish().contains(">lev\u{2026}</text>"));
    }

    #[test]
    fn a_picture_holds_what_is_in_it() {
        let mut svg = Svg::default();
        let height = svg.label(10, 20, 100, Tint::Unit, &["a".into(), "b".into()]);
        assert_eq!(height, 42);
        assert!(svg.finish().contains("width=\"122\" height=\"74\""));
    }
}
