//! What a file says, before anything is looked up: a key that is set twice has two definitions.

use super::source::Place;

/// A value as written.
#[derive(Debug)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    Array(Vec<Node>),
    Object(Fields),
    /// Several things side by side, or a substitution.
    Concat(Vec<Part>, Place),
    /// `+=`
    Append(Box<Node>, Place),
}

#[derive(Debug)]
pub(super) enum Part {
    /// White space between two parts: counts only where text is put together.
    Blank(String),
    Node(Node),
    Substitution {
        path: Vec<String>,
        /// As written, for the environment and for errors.
        name: String,
        optional: bool,
        place: Place,
    },
}

/// The keys of one object in order of appearance, each with all its definitions.
#[derive(Debug, Default)]
pub(super) struct Fields(Vec<(String, Vec<Node>)>);

impl Fields {
    pub fn get(&self, key: &str) -> Option<&[Node]> {
        self.0
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, d)| d.as_slice())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &[Node])> {
        self.0.iter().map(|(k, d)| (k.as_str(), d.as_slice()))
    }

    fn push(&mut self, key: String, node: Node) {
        let definitions = match self.0.iter_mut().position(|(k, _)| *k == key) {
            Some(at) => &mut self.0[at].1,
            None => {
                self.0.push((key, Vec::new()));
                let last = self.0.len() - 1;
                &mut self.0[last].1
            }
        };
        match (definitions.last_mut(), node) {
            (Some(Node::Object(before)), Node::Object(more)) => before.extend(more),
            (_, node) => definitions.push(node),
        }
    }

    pub fn extend(&mut self, more: Fields) {
        for (key, definitions) in more.0 {
            for node in definitions {
                self.push(key.clone(), node);
            }
        }
    }

    pub fn push_path(&mut self, mut path: Vec<String>, node: Node) {
        let mut node = node;
        while path.len() > 1 {
            if let Some(last) = path.pop() {
                let mut inner = Fields::default();
                inner.push(last, node);
                node = Node::Object(inner);
            }
        }
        if let Some(first) = path.pop() {
            self.push(first, node);
        }
    }
}

/// Puts plain text together at once; only what has to be looked up stays in parts.
pub(super) fn simplest(mut parts: Vec<Part>, place: Place) -> Node {
    let single = parts.len() == 1;
    if single && let Some(Part::Node(node)) = parts.pop_if(|part| matches!(part, Part::Node(_))) {
        return node;
    }
    let mut text = String::new();
    for part in &parts {
        match part {
            Part::Blank(blank) => text.push_str(blank),
            Part::Node(Node::Text(t) | Node::Number(t)) => text.push_str(t),
            Part::Node(Node::Bool(b)) => text.push_str(if *b { "true" } else { "false" }),
            Part::Node(Node::Null) => text.push_str("null"),
            Part::Node(_) | Part::Substitution { .. } => return Node::Concat(parts, place),
        }
    }
    Node::Text(text)
}

/// Text, lists and sections do not stand side by side.
pub(super) fn cannot_follow(next: char, parts: &[Part]) -> bool {
    parts.iter().any(|part| match part {
        Part::Node(Node::Array(_)) => !matches!(next, '[' | '$' | '\\'),
        Part::Node(Node::Object(_)) => !matches!(next, '{' | '$' | '\\'),
        Part::Node(_) => matches!(next, '{' | '['),
        Part::Blank(_) | Part::Substitution { .. } => false,
    })
}
