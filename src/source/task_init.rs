//! `Task.init` at the head of an entry script: the SDK's own injected lines are moved where Python
//! takes them (nothing may stand before `from __future__`), and `CLEARML_AGENT_FORCE_TASK_INIT` adds
//! them. Text in, text out.

/// What is added; not run where another script imports this one.
const ADDED: [&str; 2] = [
    "from clearml import Task",
    "(__name__ != \"__main__\") or Task.init()",
];

/// The script with the injected lines below its imports of `__future__`; nothing where all is well.
pub(super) fn below_future(text: &str) -> Option<String> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let (injected, rest) = lines.split_at(injected(&lines));
    let after = after_future(rest).filter(|_| !injected.is_empty())?;
    let (before, behind) = rest.split_at(after);
    Some([before, injected, behind].concat().concat())
}

/// The script with a call of `Task.init`; nothing where it has one at that place.
pub(super) fn added(text: &str) -> Option<String> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    // A `#!` line and one that tells the encoding stay at the head.
    let comments = lines
        .iter()
        .take_while(|line| line.starts_with('#'))
        .count();
    let place = after_future(&lines).unwrap_or(comments);
    if injected(&lines) > 0 || injected(&lines[place..]) > 0 {
        return None;
    }
    let end = match lines.first() {
        Some(line) if line.ends_with("\r\n") => "\r\n",
        _ => "\n",
    };
    let (before, behind) = lines.split_at(place);
    let mut result = before.concat();
    if !result.is_empty() && !result.ends_with('\n') {
        result.push_str(end);
    }
    for line in ADDED {
        result.push_str(line);
        result.push_str(end);
    }
    Some(result + &behind.concat())
}

/// How many lines at the head are the SDK's: of its remote launcher, or of `clearml-task`.
fn injected(lines: &[&str]) -> usize {
    let is_call = |at: usize| lines.get(at).is_some_and(|line| line.contains("Task.init"));
    let starts = |at: usize, with| {
        lines
            .get(at)
            .is_some_and(|line: &&str| line.starts_with(with))
    };
    if starts(0, "from clearml ") && is_call(1) {
        2
    } else if starts(0, "try: from ")
        && starts(1, "except ImportError: from clearml ")
        && is_call(2)
    {
        3
    } else {
        0
    }
}

/// The line behind the last import of `__future__`, before which only comments and texts may stand.
fn after_future(lines: &[&str]) -> Option<usize> {
    let mut found = None;
    let mut at = 0;
    while let Some(line) = lines.get(at) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            at += 1;
        } else if is_future(line) {
            at = end_of_statement(lines, at);
            found = Some(at);
        } else if let Some(behind) = end_of_text(lines, at) {
            at = behind;
        } else {
            // No import of `__future__` may follow.
            break;
        }
    }
    found
}

fn is_future(line: &str) -> bool {
    let mut words = line.split_whitespace();
    matches!(words.next(), Some("from" | "import")) && words.next() == Some("__future__")
}

/// The line behind the statement that begins at `at`: it goes on within parentheses and behind a
/// backslash.
fn end_of_statement(lines: &[&str], at: usize) -> usize {
    let mut open = 0_i32;
    for (number, line) in lines.iter().enumerate().skip(at) {
        let code = line.split('#').next().unwrap_or_default();
        open += code
            .chars()
            .map(|c| i32::from(c == '(') - i32::from(c == ')'))
            .sum::<i32>();
        if open <= 0 && !code.trim_end().ends_with('\\') {
            return number + 1;
        }
    }
    lines.len()
}

/// The line behind the text (a docstring) that begins at `at`; nothing if it is no text.
fn end_of_text(lines: &[&str], at: usize) -> Option<usize> {
    let line = lines.get(at)?.trim_start();
    let line = line.trim_start_matches(['r', 'R', 'u', 'U']);
    let quote = ["\"\"\"", "'''", "\"", "'"]
        .into_iter()
        .find(|quote| line.starts_with(quote))?;
    let rest = &line[quote.len()..];
    if rest.contains(quote) || quote.len() == 1 {
        return Some(at + 1);
    }
    let end = lines
        .iter()
        .skip(at + 1)
        .position(|line| line.contains(quote))?;
    Some(at + end + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAUNCHER: &str = "from clearml import Task\n(__name__ != \"__main__\") or Task.init()\n";
    const CLEARML_TASK: &str = "try: from allegroai import Task\nexcept ImportError: from clearml import Task\n\
                                (__name__ != \"__main__\") or Task.init()\n";

    #[test]
    fn injected_lines_go_below_the_future() {
        for head in [
            "from __future__ import annotations\n",
            "#!/usr/bin/env python\n# a comment\n\n\"\"\"A text.\nfrom __future__ import no\n\"\"\"\n\
             from __future__ import (\n    annotations,  # )\n    division,\n)\nimport __future__\n",
            "'''one line'''\nfrom __future__ import a, \\\n    b\n",
            "r'short'\r\nfrom  __future__ import a\r\n",
        ] {
            let rest = "import os\nfrom __future__ import too_late\n";
            for injected in [LAUNCHER, CLEARML_TASK] {
                let found = below_future(&format!("{injected}{head}{rest}"));
                assert_eq!(found, Some(format!("{head}{injected}{rest}")));
            }
        }
    }

    #[test]
    fn scripts_without_either_stay_as_they_are() {
        for text in [
            "",
            "import os\n",
            "from __future__ import a\nimport os\n",
            "from clearml import Task\nimport os\nTask.init()\n",
            &format!("{LAUNCHER}import os\n"),
            &format!("{LAUNCHER}\"\"\"never closed\nfrom __future__ import a\n"),
            &format!("{LAUNCHER}from __futures__x import a\n"),
        ] {
            assert_eq!(below_future(text), None, "{text}");
        }
    }

    #[test]
    fn a_call_is_added_once() {
        let call = ADDED.join("\n") + "\n";
        for (text, expected) in [
            ("print(1)\n", Some(format!("{call}print(1)\n"))),
            ("", Some(call.clone())),
            (
                "#!/bin/python\n# -*- coding: utf-8 -*-\nx\n",
                Some(format!("#!/bin/python\n# -*- coding: utf-8 -*-\n{call}x\n")),
            ),
            (
                "from __future__ import a\nx",
                Some(format!("from __future__ import a\n{call}x")),
            ),
            (
                "from __future__ import a",
                Some(format!("from __future__ import a\n{call}")),
            ),
            (&format!("{call}x\n"), None),
            (&format!("from __future__ import a\n{call}x\n"), None),
            (CLEARML_TASK, None),
        ] {
            assert_eq!(added(text), expected, "{text}");
        }
    }
}
