//! The batch system or CI that started the agent, as far as its environment tells. Pure.

use super::job_env::Variables;

/// Who claims a task, so that the same one, started again, can take it up where it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant {
    pub id: String,
    /// How often the batch system has started this job again (`SLURM_RESTART_COUNT`): all ranks of one
    /// start have the same.
    pub round: u32,
}

/// What may want its machine back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batch {
    Slurm { job: String },
    Kubernetes { pod: String },
}

impl std::fmt::Display for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Batch::Slurm { job } => write!(f, "Slurm job {job}"),
            Batch::Kubernetes { pod } => write!(f, "Kubernetes pod {pod}"),
        }
    }
}

fn set<'a>(env: &'a Variables, name: &str) -> Option<&'a str> {
    let value = env.get(name).map(|value| value.trim());
    value.filter(|value| !value.is_empty())
}

/// `CLEARML_AGENT_CLAIM_ID`, or the job of Slurm, the pod of Kubernetes (whose containers may be
/// started again), the run of GitHub's, GitLab's or Jenkins' CI. None for a person at a shell.
pub fn claimant(env: &Variables) -> Option<Claimant> {
    let all = |names: &[&str]| -> Option<String> {
        let values: Option<Vec<&str>> = names.iter().map(|name| set(env, name)).collect();
        values.map(|values| values.join(":"))
    };
    let named = |system: &str, id: Option<String>| id.map(|id| format!("{system}:{id}"));
    let slurm = || {
        let cluster = set(env, "SLURM_CLUSTER_NAME").unwrap_or("cluster");
        all(&["SLURM_JOB_ID"]).map(|job| format!("{cluster}:{job}"))
    };
    // One of several pods has a name of its own, and the others could not know it.
    let pod = || match (set(env, "KUBERNETES_SERVICE_HOST"), set(env, "RANK")) {
        (Some(_), None) => all(&["HOSTNAME"]),
        _ => None,
    };
    let id = set(env, "CLEARML_AGENT_CLAIM_ID")
        .map(str::to_owned)
        .or_else(|| named("slurm", slurm()))
        .or_else(|| named("pod", pod()))
        .or_else(|| {
            let run = ["GITHUB_REPOSITORY", "GITHUB_RUN_ID", "GITHUB_JOB"];
            named("github", all(&run))
        })
        .or_else(|| {
            let job = ["CI_PROJECT_PATH", "CI_PIPELINE_ID", "CI_JOB_NAME"];
            named("gitlab", all(&job))
        })
        .or_else(|| named("jenkins", all(&["BUILD_TAG"])))?;
    let round = set(env, "SLURM_RESTART_COUNT").and_then(|count| count.parse().ok());
    Some(Claimant {
        id,
        round: round.unwrap_or(0),
    })
}

pub fn batch(env: &Variables) -> Option<Batch> {
    if let Some(job) = set(env, "SLURM_JOB_ID") {
        return Some(Batch::Slurm {
            job: job.to_owned(),
        });
    }
    set(env, "KUBERNETES_SERVICE_HOST")?;
    Some(Batch::Kubernetes {
        pod: set(env, "HOSTNAME").unwrap_or("?").to_owned(),
    })
}

/// The line of a file of task ids that is this job's, counted from 1: an array's index in Slurm, an
/// indexed job's in Kubernetes (which counts from 0). `None`: not one of several.
pub fn line(env: &Variables) -> Option<Result<usize, String>> {
    let number = |name: &str| {
        let text = set(env, name)?;
        Some(
            text.parse::<usize>()
                .map_err(|_| format!("{name} is {text:?}, which is no number")),
        )
    };
    if let Some(index) = number("SLURM_ARRAY_TASK_ID") {
        return Some(index.and_then(|index| {
            match index {
                0 => Err(
                    "SLURM_ARRAY_TASK_ID is 0, and the lines of the file are counted from 1: use \
                      `--array=1-N`"
                        .into(),
                ),
                index => Ok(index),
            }
        }));
    }
    number("JOB_COMPLETION_INDEX").map(|index| index.map(|index| index + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(pairs: &[(&str, &str)]) -> Variables {
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn who_claims() {
        let slurm = [("SLURM_JOB_ID", "12"), ("SLURM_CLUSTER_NAME", "big")];
        let pod = [
            ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
            ("HOSTNAME", "train-x7"),
        ];
        for (env, expected) in [
            (vars(&[]), None),
            (vars(&[("HOSTNAME", "laptop")]), None),
            (vars(&slurm), Some(("slurm:big:12", 0))),
            (vars(&slurm[..1]), Some(("slurm:cluster:12", 0))),
            (
                vars(&[slurm[0], ("SLURM_RESTART_COUNT", "3")]),
                Some(("slurm:cluster:12", 3)),
            ),
            (vars(&pod), Some(("pod:train-x7", 0))),
            (vars(&[pod[0], pod[1], ("RANK", "0")]), None),
            (
                vars(&[slurm[0], pod[0], ("CLEARML_AGENT_CLAIM_ID", " mine ")]),
                Some(("mine", 0)),
            ),
            (
                vars(&[
                    ("GITHUB_REPOSITORY", "o/r"),
                    ("GITHUB_RUN_ID", "7"),
                    ("GITHUB_JOB", "train"),
                ]),
                Some(("github:o/r:7:train", 0)),
            ),
            (vars(&[("GITHUB_RUN_ID", "7")]), None),
            (
                vars(&[
                    ("CI_PROJECT_PATH", "g/p"),
                    ("CI_PIPELINE_ID", "5"),
                    ("CI_JOB_NAME", "t"),
                ]),
                Some(("gitlab:g/p:5:t", 0)),
            ),
            (
                vars(&[("BUILD_TAG", "jenkins-a-1")]),
                Some(("jenkins:jenkins-a-1", 0)),
            ),
        ] {
            let found = claimant(&env);
            let found = found.as_ref().map(|c| (c.id.as_str(), c.round));
            assert_eq!(found, expected, "{env:?}");
        }
    }

    #[test]
    fn which_line_is_this_jobs() {
        for (env, expected) in [
            (vars(&[]), None),
            (vars(&[("SLURM_ARRAY_TASK_ID", "3")]), Some(Ok(3))),
            (vars(&[("JOB_COMPLETION_INDEX", "0")]), Some(Ok(1))),
        ] {
            assert_eq!(line(&env), expected, "{env:?}");
        }
        for (name, value) in [("SLURM_ARRAY_TASK_ID", "0"), ("JOB_COMPLETION_INDEX", "x")] {
            let found = line(&vars(&[(name, value)]));
            assert!(
                matches!(&found, Some(Err(why)) if why.contains(name)),
                "{found:?}"
            );
        }
    }
}
