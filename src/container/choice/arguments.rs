//! The arguments of a container from those of its task (or of the default) and the machine's extra
//! ones: templates filled in, variables of the agent taken over, what is not allowed left out.

use super::{ChoiceError, Request, Settings};
use crate::config::Variables;
use crate::container::run_args::{Word, flags, is_named, without};
use crate::container::template;

/// `own` are the task's arguments or the default ones, which stand at `place`.
pub(super) fn merge(
    request: &Request<'_>,
    place: &'static str,
    own: &[String],
    notes: &mut Vec<String>,
) -> Result<Vec<String>, ChoiceError> {
    const EXTRA: &str = "agent.extra_docker_arguments";
    let settings = request.settings;
    let read = |place, words: &[String]| {
        let words = words.iter().filter(|word| !word.is_empty());
        let words = words.map(|word| template::substitute(word, request.template));
        flags(&words.collect::<Vec<_>>()).map_err(|error| ChoiceError::Arguments { place, error })
    };
    let mut own = read(place, own)?;
    let mut extra = read(EXTRA, &settings.extra_arguments)?;

    retain(&mut own, notes, "agent.docker_args_filters", |word| {
        is_let_through(word, settings)
    });
    if settings.task_sees_environment {
        take_over(&mut own, request.env);
    }
    // Those are the administrator's.
    take_over(&mut extra, request.env);
    for words in [&mut own, &mut extra] {
        retain(words, notes, "agent.forbidden_docker_args", |word| {
            !settings.forbidden.iter().any(|name| is_named(word, name))
        });
    }

    let (stronger, weaker) = match settings.extra_precedes_task {
        true => (&extra, &mut own),
        false => (&own, &mut extra),
    };
    retain(weaker, notes, "agent.protected_docker_extra_args", |word| {
        let taken = stronger.iter().any(|strong| strong.name == word.name);
        let is_protected = settings.protected.iter().any(|name| is_named(word, name));
        !(taken && is_protected)
    });
    let (first, second) = match settings.extra_precedes_task {
        true => (extra, own),
        false => (own, extra),
    };
    let mut words = without(&first, |_| false);
    words.extend(without(&second, |_| false));
    Ok(words)
}

/// Keeps what may stay and notes what goes.
fn retain(
    words: &mut Vec<Word>,
    notes: &mut Vec<String>,
    key: &str,
    may_stay: impl Fn(&Word) -> bool,
) {
    words.retain(|word| {
        let stays = may_stay(word);
        if !stays {
            notes.push(format!("docker argument {} is left out: {key}", word.flag));
        }
        stays
    });
}

fn is_let_through(word: &Word, settings: &Settings) -> bool {
    let whole = match &word.value {
        Some(value) => format!("{}={value}", word.flag),
        None => word.flag.clone(),
    };
    let texts = [word.flag.as_str(), &whole];
    let mut filters = settings.filters.iter();
    settings.filters.is_empty()
        || filters.any(|filter| texts.iter().any(|text| filter.is_match(text)))
}

/// `-e A=$B` takes `B` of the agent's environment; what is not set stays as it is written.
fn take_over(words: &mut [Word], env: &Variables) {
    let variables = words.iter_mut().filter(|word| word.name == "env");
    for value in variables.filter_map(|word| word.value.as_mut()) {
        if let Some((name, text)) = value.split_once('=') {
            *value = format!("{name}={}", template::expand(text, env));
        }
    }
}
