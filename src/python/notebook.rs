//! A notebook as entry point: it is converted to a script, which is then run.

use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::settings::Settings;
use super::tool::{self, Call};
use super::{Environment, PythonError, Variables};
use crate::console::Console;

/// Whether the entry point is a notebook.
pub fn is_notebook(entry_point: &str) -> bool {
    entry_point.trim().ends_with(".ipynb")
}

/// The entry point to run: for a notebook the script that it was converted to, next to it. A
/// file that can't be converted is run as it is (Jupyter tasks record a plain script under a
/// notebook's name).
pub async fn convert(
    env: &Environment,
    working_dir: &Path,
    entry_point: &str,
    settings: &Settings,
    console: &Console,
    stop: &CancellationToken,
) -> Result<String, PythonError> {
    let (true, Some(python)) = (is_notebook(entry_point), &env.python) else {
        return Ok(entry_point.to_owned());
    };
    let notebook = entry_point.trim();
    let script = format!("{}.py", notebook.trim_end_matches(".ipynb"));
    let is_json = std::fs::read(working_dir.join(notebook))
        .is_ok_and(|bytes| serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok());
    if !is_json {
        console.say(format!(
            "Note: {notebook} is no notebook but a script: it is run as it is."
        ));
        return Ok(entry_point.to_owned());
    }
    let words = ["-m", "nbconvert", "--to", "python", "--", notebook];
    let call = Call {
        program: python.clone(),
        args: words.map(str::to_owned).to_vec(),
        env: tool::environment(&settings.environment, Variables::new()),
        dir: working_dir.to_owned(),
    };
    let finished = tool::run(&call, console, stop).await?;
    // nbconvert names the file after the notebook's own language.
    if finished.succeeded() && working_dir.join(&script).is_file() {
        return Ok(script);
    }
    console.say(format!(
        "Note: {notebook} could not be converted to a script (see above): it is run as it is."
    ));
    Ok(entry_point.to_owned())
}
