//! The batch system or CI that started the agent, as far as its environment tells. Pure.

use serde::{Deserialize, Serialize};

use super::job_env::Variables;

/// Who claims a task, so that the same one, started again, can take it up where it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimant {
    pub id: String,
    /// How often the batch system has started this job again (`SLURM_RESTART_COUNT`): all ranks of one
    /// start have the same.
    pub round: u32,
    /// The job's step (`SLURM_STEP_ID`): all ranks that one `srun` starts have the same.
    pub step: Option<String>,
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

/// `CLEARML_AGENT_CLAIM_ID`, or the job of Slurm, the job of a CI, the pod of Kubernetes (whose containers
/// may be started again). None for a person at a shell.
///
/// The legs of a CI's matrix may have one name, and so may pods: who goes on with a task asks first
/// whether it runs still (`claim::asking`).
pub fn claimant(env: &Variables) -> Option<Claimant> {
    let id = set(env, "CLEARML_AGENT_CLAIM_ID")
        .map(str::to_owned)
        .or_else(|| slurm_job(env))
        // Before the pod: it is a CI's own, and another one when the job is run again.
        .or_else(|| ci_job(env))
        .or_else(|| pod(env))?;
    let round = set(env, "SLURM_RESTART_COUNT").and_then(|count| count.parse().ok());
    Some(Claimant {
        id,
        round: round.unwrap_or(0),
        step: set(env, "SLURM_STEP_ID").map(str::to_owned),
    })
}

fn slurm_job(env: &Variables) -> Option<String> {
    let cluster = set(env, "SLURM_CLUSTER_NAME").unwrap_or("cluster");
    set(env, "SLURM_JOB_ID").map(|job| format!("slurm:{cluster}:{job}"))
}

fn pod(env: &Variables) -> Option<String> {
    set(env, "KUBERNETES_SERVICE_HOST")?;
    // One of several pods has a name of its own, and the others could not know it.
    if set(env, "RANK").is_some() {
        return None;
    }
    let name = set(env, "K8S_POD_NAME").or_else(|| set(env, "HOSTNAME"))?;
    Some(match set(env, "K8S_NAMESPACE") {
        Some(namespace) => format!("pod:{namespace}:{name}"),
        None => format!("pod:{name}"),
    })
}

/// What a CI calls a job and what is the same when it is run again; and, where there is one, the number of
/// the leg.
const CI_JOBS: [(&str, &[&str], Option<&str>); 5] = [
    (
        "github",
        &["GITHUB_REPOSITORY", "GITHUB_RUN_ID", "GITHUB_JOB"],
        None,
    ),
    // The name has the leg in it: `test 1/5`, `test: [a, b]`.
    (
        "gitlab",
        &["CI_PROJECT_PATH", "CI_PIPELINE_ID", "CI_JOB_NAME"],
        None,
    ),
    (
        "buildkite",
        &["BUILDKITE_BUILD_ID", "BUILDKITE_STEP_ID"],
        Some("BUILDKITE_PARALLEL_JOB"),
    ),
    // The workspace is that of the workflow that is run again.
    (
        "circleci",
        &["CIRCLE_WORKFLOW_WORKSPACE_ID", "CIRCLE_JOB"],
        Some("CIRCLE_NODE_INDEX"),
    ),
    ("jenkins", &["BUILD_TAG"], None),
];

fn ci_job(env: &Variables) -> Option<String> {
    CI_JOBS.iter().find_map(|(system, names, leg)| {
        let mut words = vec![*system];
        for name in *names {
            words.push(set(env, name)?);
        }
        words.extend(leg.and_then(|leg| set(env, leg)));
        Some(words.join(":"))
    })
}

/// Where a pod runs, as the variables say that a manifest fills from the pod's own fields: what they are
/// called in the task's runtime, and their values.
pub fn pod_fields(env: &Variables) -> Vec<(&'static str, String)> {
    const FIELDS: [(&str, &str); 5] = [
        ("k8s_node_name", "K8S_NODE_NAME"),
        ("k8s_pod_name", "K8S_POD_NAME"),
        ("k8s_namespace", "K8S_NAMESPACE"),
        ("k8s_pod_uid", "K8S_POD_UID"),
        ("k8s_pod_ip", "K8S_POD_IP"),
    ];
    if set(env, "KUBERNETES_SERVICE_HOST").is_none() {
        return Vec::new();
    }
    let value = |variable: &str| match (set(env, variable), variable) {
        // A pod's host name is its own name, but for one on the host's network.
        (None, "K8S_POD_NAME") => set(env, "HOSTNAME"),
        (value, _) => value,
    };
    FIELDS
        .iter()
        .filter_map(|(name, variable)| Some((*name, value(variable)?.to_owned())))
        .collect()
}

pub fn batch(env: &Variables) -> Option<Batch> {
    if let Some(job) = set(env, "SLURM_JOB_ID") {
        return Some(Batch::Slurm {
            job: job.to_owned(),
        });
    }
    set(env, "KUBERNETES_SERVICE_HOST")?;
    Some(Batch::Kubernetes {
        pod: set(env, "K8S_POD_NAME")
            .or_else(|| set(env, "HOSTNAME"))
            .unwrap_or("?")
            .to_owned(),
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
            (
                vars(&[
                    pod[0],
                    ("HOSTNAME", "node7"),
                    ("K8S_POD_NAME", "train-x7"),
                    ("K8S_NAMESPACE", "ml"),
                ]),
                Some(("pod:ml:train-x7", 0)),
            ),
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
            // A runner in a pod, which is another one the next time.
            (
                vars(&[
                    pod[0],
                    pod[1],
                    ("CI_PROJECT_PATH", "g/p"),
                    ("CI_PIPELINE_ID", "5"),
                    ("CI_JOB_NAME", "t 2/3"),
                ]),
                Some(("gitlab:g/p:5:t 2/3", 0)),
            ),
            (
                vars(&[("BUILDKITE_BUILD_ID", "b"), ("BUILDKITE_STEP_ID", "s")]),
                Some(("buildkite:b:s", 0)),
            ),
            (
                vars(&[
                    ("CIRCLE_WORKFLOW_WORKSPACE_ID", "w"),
                    ("CIRCLE_JOB", "j"),
                    ("CIRCLE_NODE_INDEX", "3"),
                ]),
                Some(("circleci:w:j:3", 0)),
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
    fn where_a_pod_runs() {
        let pod = [
            ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
            ("HOSTNAME", "train-x7"),
            ("K8S_NODE_NAME", "gpu7"),
            ("K8S_NAMESPACE", ""),
        ];
        assert_eq!(
            pod_fields(&vars(&pod)),
            [
                ("k8s_node_name", "gpu7".to_owned()),
                ("k8s_pod_name", "train-x7".to_owned())
            ]
        );
        assert!(pod_fields(&vars(&pod[1..])).is_empty());
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
