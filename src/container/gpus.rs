//! Which GPUs the container gets, as `docker run` flags and a variable: what the agent was told to use,
//! and never more. Pure.

use super::run_args::Word;

/// What the container is given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Granted {
    /// Flags to put before the arguments.
    pub words: Vec<String>,
    /// `NVIDIA_VISIBLE_DEVICES`, where it is to be set.
    pub visible: Option<String>,
    /// A `--gpus` of the arguments could ask for more, and is left out.
    pub alone: bool,
}

/// What is known of the machine and of the run.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// `all`, `none`, or devices as given by `--gpus`, `--cpu-only` or the agent's own
    /// `NVIDIA_VISIBLE_DEVICES`; none where nobody said anything.
    pub devices: Option<&'a str>,
    /// `CLEARML_DOCKER_SKIP_GPUS_FLAG`: the variable alone, for engines whose default runtime obeys it.
    pub variable_only: bool,
    /// The engine's machine has NVIDIA's driver; only asked where nobody said anything.
    pub driver: bool,
}

pub fn grant(asked: Asked<'_>) -> Granted {
    let none = || Granted {
        visible: Some("none".into()),
        alone: true,
        ..Granted::default()
    };
    // `.` for `:` is how MIG devices are written where a colon cannot be.
    let devices = asked
        .devices
        .map(|devices| devices.trim().replace('.', ":"));
    let flag = |value: String, alone| Granted {
        words: vec!["--gpus".into(), value],
        visible: None,
        alone,
    };
    match devices.as_deref() {
        Some("none" | "void" | "") => none(),
        Some(devices) if asked.variable_only => Granted {
            visible: Some(devices.to_owned()),
            alone: true,
            ..Granted::default()
        },
        None if asked.variable_only => Granted {
            visible: Some("all".into()),
            ..Granted::default()
        },
        Some("all") => flag("all".into(), false),
        // One value with a comma in it, in the language of the flag.
        Some(devices) => flag(format!("\"device={devices}\""), true),
        None if asked.driver => flag("all".into(), false),
        None => Granted::default(),
    }
}

/// The arguments with what is granted: whoever asks for GPUs in them has what they ask for, unless the
/// agent was told which.
pub fn apply(granted: &Granted, arguments: Vec<Word>) -> (Vec<Word>, bool, Option<Word>) {
    let asks = |word: &Word| word.name == "gpus";
    if granted.alone {
        let (out, kept): (Vec<_>, Vec<_>) = arguments.into_iter().partition(asks);
        return (kept, true, out.into_iter().next());
    }
    let use_ours = !arguments.iter().any(asks);
    (arguments, use_ours, None)
}

#[cfg(test)]
mod tests {
    use super::super::run_args::flags;
    use super::*;

    #[test]
    fn a_container_never_sees_more_than_was_asked_for() {
        let words = |value: &str| vec!["--gpus".to_owned(), value.to_owned()];
        for (devices, variable_only, driver, expected_words, visible) in [
            (None, false, false, vec![], None),
            (None, false, true, words("all"), None),
            (None, true, true, vec![], Some("all")),
            (Some("all"), false, false, words("all"), None),
            (Some("0,1"), false, true, words("\"device=0,1\""), None),
            (Some("0,1"), true, true, vec![], Some("0,1")),
            (Some("0.1"), false, true, words("\"device=0:1\""), None),
            (
                Some("MIG-ab-cd"),
                false,
                true,
                words("\"device=MIG-ab-cd\""),
                None,
            ),
            (Some("none"), false, true, vec![], Some("none")),
            (Some("none"), true, true, vec![], Some("none")),
        ] {
            let granted = grant(Asked {
                devices,
                variable_only,
                driver,
            });
            assert_eq!(granted.words, expected_words, "{devices:?}");
            assert_eq!(granted.visible.as_deref(), visible, "{devices:?}");
        }
    }

    #[test]
    fn the_arguments_ask_for_gpus_where_the_agent_was_not_told() {
        let arguments = flags(&["--gpus".into(), "all".into(), "--init".into()]).unwrap();
        for (devices, kept, ours) in [
            (None, 2, false),
            (Some("all"), 2, false),
            (Some("0"), 1, true),
            (Some("none"), 1, true),
        ] {
            let granted = grant(Asked {
                devices,
                variable_only: false,
                driver: true,
            });
            let (words, use_ours, _) = apply(&granted, arguments.clone());
            assert_eq!((words.len(), use_ours), (kept, ours), "{devices:?}");
        }
    }
}
