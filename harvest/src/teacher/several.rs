//! Several teachers that fill one cache.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use futures::future::{BoxFuture, join_all};
use schemas::{ExampleId, Provenance, TeacherIdentity};

use super::{
    Answers, BatchLimits, Description, ErrorClass, Offer, Paid, Reply, Request, Teacher,
    TeacherError, Usage,
};

/// Asks every one of several teachers about a row; the row is whole once all have answered. What some answered is kept
/// while others fail, so that only those are asked again.
#[derive(Debug)]
pub struct Several {
    teachers: Vec<(String, Arc<dyn Teacher>)>,
    description: Description,
}

impl Several {
    /// The teachers by name, of which there must be one; the signals of each get its name in front.
    ///
    /// # Errors
    /// A [`TeacherError`] where the signals of two get the same name.
    pub fn new(teachers: Vec<(String, Arc<dyn Teacher>)>) -> Result<Self, TeacherError> {
        refuse_equal_signals(&teachers)?;
        let described = || {
            teachers
                .iter()
                .map(|(name, teacher)| (name, teacher.describe()))
        };
        let offers = described().flat_map(|(name, description)| {
            description.offers.iter().map(move |offer| Offer {
                name: prefixed(name, &offer.name),
                ..offer.clone()
            })
        });
        let models: Vec<&str> = described()
            .map(|(_, d)| d.identity.model.as_str())
            .collect();
        let settings: serde_json::Map<_, _> = described()
            .map(|(name, d)| (name.clone(), serde_json::json!(d.identity)))
            .collect();
        let identity = TeacherIdentity {
            kind: "several".into(),
            model: models.join(" + "),
            settings: settings.into(),
        };
        let batch = BatchLimits {
            max_requests: described()
                .map(|(_, d)| d.batch.max_requests)
                .min()
                .unwrap_or(1),
            max_bytes: described()
                .map(|(_, d)| d.batch.max_bytes)
                .min()
                .unwrap_or(usize::MAX),
        };
        let max_in_flight = described().filter_map(|(_, d)| d.max_in_flight).min();
        let description = Description {
            identity,
            offers: offers.collect(),
            batch,
            max_in_flight,
        };
        Ok(Self {
            teachers,
            description,
        })
    }

    /// What the teacher at `index` is asked of a request.
    pub fn part_of(request: &Request, index: usize) -> Request {
        let own = Request::text(request.id, request.draw, "");
        match index
            .checked_sub(1)
            .and_then(|index| request.further.get(index))
        {
            None => Request {
                prompt: request.prompt.clone(),
                image: request.image.clone(),
                ..own
            },
            Some((prompt, image)) => Request {
                prompt: prompt.clone(),
                image: image.clone(),
                ..own
            },
        }
    }

    async fn ask(&self, requests: &[Request], paid: &dyn Paid) -> Result<Answers, TeacherError> {
        let parts = self
            .teachers
            .iter()
            .enumerate()
            .map(|(index, (name, teacher))| {
                let own: Vec<Request> = requests
                    .iter()
                    .map(|request| Self::part_of(request, index))
                    .collect();
                async move { ask_one(name, teacher.as_ref(), &own, paid).await }
            });
        let parts = join_all(parts).await;
        let mut rows: Vec<Result<Vec<(&str, Reply)>, TeacherError>> =
            requests.iter().map(|_| Ok(Vec::new())).collect();
        for ((name, _), part) in self.teachers.iter().zip(parts) {
            for (row, reply) in rows.iter_mut().zip(part) {
                match (row.as_mut(), reply) {
                    (Ok(parts), Ok(reply)) => parts.push((name, reply)),
                    (Ok(_), Err(error)) => *row = Err(error),
                    // The error that matters most is the one that stops the run.
                    (Err(first), Err(error)) if error.stops_the_run() && !first.stops_the_run() => {
                        *row = Err(error);
                    }
                    (Err(_), _) => {}
                }
            }
        }
        let replies: Vec<_> = rows.into_iter().map(|row| row.map(whole)).collect();
        Ok(replies.into())
    }
}

/// `x` with `prompt_logprobs` and `x_prompt` with `logprobs` would fill one column.
fn refuse_equal_signals(teachers: &[(String, Arc<dyn Teacher>)]) -> Result<(), TeacherError> {
    let mut owners = BTreeMap::new();
    for (name, teacher) in teachers {
        for offer in &teacher.describe().offers {
            let signal = prefixed(name, &offer.name);
            if let Some(other) = owners.insert(signal.clone(), name) {
                let problem =
                    format!("the teachers `{other}` and `{name}` both give a signal `{signal}`");
                return Err(TeacherError::new(ErrorClass::Deterministic, problem)
                    .advise(format!("give [teachers.{name}] another name")));
            }
        }
    }
    Ok(())
}

/// The parts of one teacher: its name is the part that its whole reply is, and stands before the names of the others.
struct PartsOf<'a> {
    name: &'a str,
    paid: &'a dyn Paid,
}

impl PartsOf<'_> {
    fn name(&self, part: &str) -> String {
        format!("{} {part}", self.name)
    }
}

impl Paid for PartsOf<'_> {
    fn find(&self, part: &str, request: &Request) -> Option<Reply> {
        self.paid.find(&self.name(part), request)
    }

    fn keep(&self, part: &str, request: &Request, reply: &Reply) -> Result<(), TeacherError> {
        self.paid.keep(&self.name(part), request, reply)
    }
}

/// Whether a part of this name holds a signal as the cache names it: that of the only teacher, or of one of several.
pub(crate) fn holds(part: &str, reply: &Reply, signal: &str) -> bool {
    let teacher = part.split(' ').next().unwrap_or_default();
    let mut own = reply.signals.keys();
    own.any(|own| own == signal || prefixed(teacher, own) == signal)
}

/// The replies of one teacher, those that are kept already among them.
async fn ask_one(
    name: &str,
    teacher: &dyn Teacher,
    requests: &[Request],
    paid: &dyn Paid,
) -> Vec<Result<Reply, TeacherError>> {
    let mut replies: Vec<Option<Result<Reply, TeacherError>>> = requests
        .iter()
        .map(|request| paid.find(name, request).map(Ok))
        .collect();
    let missing: Vec<Request> = requests
        .iter()
        .zip(&replies)
        .filter(|(_, reply)| reply.is_none())
        .map(|(request, _)| request.clone())
        .collect();
    if !missing.is_empty() {
        let answers = match teacher.query(&missing, &PartsOf { name, paid }).await {
            Ok(answers) => answers.replies,
            Err(error) => missing.iter().map(|_| Err(error.clone())).collect(),
        };
        let mut new = missing.iter().zip(answers);
        for reply in replies.iter_mut().filter(|reply| reply.is_none()) {
            let (request, answer) = new.next().expect("one answer for each missing reply");
            *reply = Some(answer.and_then(|answer| {
                paid.keep(name, request, &answer)?;
                Ok(answer)
            }));
        }
    }
    replies.into_iter().flatten().collect()
}

/// One row of all parts: counts add up, models are joined, the latency is the longest.
fn whole(parts: Vec<(&str, Reply)>) -> Reply {
    let mut signals = BTreeMap::new();
    let mut sum = Provenance::default();
    let texts = |of: fn(&Provenance) -> &Option<String>| -> Option<String> {
        let texts: Vec<&str> = parts
            .iter()
            .filter_map(|(_, reply)| of(&reply.provenance).as_deref())
            .collect();
        (!texts.is_empty()).then(|| texts.join(" + "))
    };
    sum.served_model = texts(|p| &p.served_model);
    sum.fingerprint = texts(|p| &p.fingerprint);
    sum.finish_reason = texts(|p| &p.finish_reason);
    for (name, reply) in parts {
        let part = reply.provenance;
        let add = |a: Option<u32>, b: Option<u32>| match (a, b) {
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
            (a, b) => a.or(b),
        };
        sum.tokens_in = add(sum.tokens_in, part.tokens_in);
        sum.tokens_out = add(sum.tokens_out, part.tokens_out);
        sum.tries = sum.tries.saturating_add(part.tries);
        sum.cost = match (sum.cost, part.cost) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
        sum.latency_ms = match (sum.latency_ms, part.latency_ms) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
        sum.answered_at = sum.answered_at.max(part.answered_at);
        let named = reply.signals.into_iter();
        signals.extend(named.map(|(signal, value)| (prefixed(name, &signal), value)));
    }
    Reply {
        signals,
        provenance: sum,
    }
}

fn prefixed(teacher: &str, signal: &str) -> String {
    format!("{teacher}_{signal}")
}

impl Teacher for Several {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn most(&self, requests: &[Request]) -> Usage {
        let mut sum = Usage::default();
        for (_, teacher) in &self.teachers {
            sum = sum.plus(teacher.most(requests));
        }
        sum
    }

    fn fee(&self, requests: &[Request]) -> f64 {
        let teachers = self.teachers.iter();
        teachers.map(|(_, teacher)| teacher.fee(requests)).sum()
    }

    fn finished<'a>(&'a self, failed: &'a HashSet<(ExampleId, u32)>) -> BoxFuture<'a, ()> {
        let teachers = self.teachers.iter();
        let all = join_all(teachers.map(|(_, teacher)| teacher.finished(failed)));
        Box::pin(async move {
            all.await;
        })
    }

    fn query<'a>(
        &'a self,
        requests: &'a [Request],
        paid: &'a dyn Paid,
    ) -> BoxFuture<'a, Result<Answers, TeacherError>> {
        Box::pin(self.ask(requests, paid))
    }
}

#[cfg(test)]
mod tests;
