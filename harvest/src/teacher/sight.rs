//! Whether a teacher looks at the pictures that it is sent.
//!
//! Some servers take a picture and drop it without a word (`transformers serve` in front of a model of text, for one).
//! No single reply shows it, so it takes another request that differs in the picture alone.

use std::fmt;

use schemas::SignalValue;

use super::media::Picture;
use super::{ErrorClass, OfferKind, Reply, Request, Teacher, TeacherError, ask_alone};

/// Vectors whose distance is less than this share of their length are the same, computed twice.
const SAME: f64 = 1e-5;

/// Tokens that a picture takes at least: fewer may be marks that a template puts between the parts of a message.
const FEWEST_TOKENS: u32 = 4;

/// Pixels along a side of the pictures that are made here: several patches of any model.
const SIDE: u32 = 224;

/// What was found out of a teacher that does not drop pictures as far as is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sight {
    /// Pictures are looked at; how that was seen.
    Seen(String),
    /// It cannot be told, for this reason.
    Unknown(String),
}

impl fmt::Display for Sight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seen(how) => write!(f, "looked at: {how}"),
            Self::Unknown(why) => write!(f, "unknown whether they are looked at: {why}"),
        }
    }
}

/// A prompt that is cut to no context.
const SHORT: &str = "What is this?";

/// What two replies say: the sight, or how it shows that pictures are dropped.
type Verdict = Result<Sight, String>;

/// Finds out whether the picture of `asked` is looked at. Takes one request, or two where the reply to `asked` is not
/// `known`; and two more before pictures count as dropped.
///
/// A teacher that gives nothing but vectors is asked about another picture, with the same text, and looks at none where
/// the vector stays what it was; it must take pictures as data URIs. Any other is asked the same without the picture,
/// and drops it where the server counts the same tokens. A server that cuts a long prompt to its context may cut off the
/// picture alone, and two pictures of a data set may be alike: so the same is tried with a short text and pictures of our
/// own before anybody is blamed.
///
/// # Errors
/// [`ErrorClass::Deterministic`] and lacking where pictures are dropped; errors that stop a run, other than that there
/// is no budget left.
pub async fn look(
    teacher: &dyn Teacher,
    asked: &Request,
    known: Option<&Reply>,
) -> Result<Sight, TeacherError> {
    let how = match judge(teacher, asked, known).await? {
        Ok(sight) => return Ok(sight),
        Err(how) => how,
    };
    let own = Request {
        prompt: SHORT.to_owned(),
        image: Some(test_picture(false)),
        ..asked.clone()
    };
    if asked.image == own.image {
        return Err(dropped(teacher, &how));
    }
    match judge(teacher, &own, None).await? {
        Err(_) => Err(dropped(teacher, &how)),
        Ok(Sight::Seen(seen)) => Ok(Sight::Seen(format!(
            "{seen}, beside a short text; beside that of the row {how}: is it cut to the server's context?"
        ))),
        Ok(Sight::Unknown(why)) => Ok(Sight::Unknown(format!("{how}, and {why}"))),
    }
}

async fn judge(
    teacher: &dyn Teacher,
    asked: &Request,
    known: Option<&Reply>,
) -> Result<Verdict, TeacherError> {
    let unknown = |why: String| Ok(Ok(Sight::Unknown(why)));
    match ask_both(teacher, asked, known).await {
        Ok((first, second)) if gives_vectors(teacher) => Ok(compare_vectors(&first, &second)),
        Ok((first, second)) => Ok(compare_tokens(&first, &second)),
        Err(error) if error.class == ErrorClass::Budget => {
            unknown("the budget does not reach for a request more".into())
        }
        Err(error) if error.stops_the_run() => Err(error),
        Err(error) => unknown(format!("the request that would show it failed: {error}")),
    }
}

async fn ask_both(
    teacher: &dyn Teacher,
    asked: &Request,
    known: Option<&Reply>,
) -> Result<(Reply, Reply), TeacherError> {
    let first = match known {
        Some(reply) => reply.clone(),
        None => ask_alone(teacher, asked).await?,
    };
    let other = Request {
        image: gives_vectors(teacher).then(|| test_picture(true)),
        ..asked.clone()
    };
    let second = ask_alone(teacher, &other).await?;
    Ok((first, second))
}

fn gives_vectors(teacher: &dyn Teacher) -> bool {
    let mut offers = teacher.describe().offers.iter();
    offers.all(|offer| offer.kind == OfferKind::Feature)
}

fn compare_vectors(first: &Reply, second: &Reply) -> Verdict {
    let vector = |reply: &Reply| {
        reply.signals.values().find_map(|value| match value {
            SignalValue::Vector(values) => Some(values.clone()),
            _ => None,
        })
    };
    let (Some(first), Some(second)) = (vector(first), vector(second)) else {
        return Ok(Sight::Unknown("a reply has no vector".into()));
    };
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let pairs = || first.iter().zip(&second);
    let distance = norm(&mut pairs().map(|(x, y)| f64::from(*x) - f64::from(*y)));
    let length = norm(&mut first.iter().map(|x| f64::from(*x)));
    if first.len() == second.len() && distance <= SAME * length {
        return Err("two different ones have the same vector".into());
    }
    Ok(Sight::Seen("another picture has another vector".into()))
}

fn compare_tokens(with: &Reply, without: &Reply) -> Verdict {
    let (Some(with), Some(without)) = (with.provenance.tokens_in, without.provenance.tokens_in)
    else {
        return Ok(Sight::Unknown("the server counts no tokens".into()));
    };
    match with.checked_sub(without) {
        Some(0) => Err(format!("a prompt has {with} tokens with one and without")),
        Some(more @ 1..FEWEST_TOKENS) => Ok(Sight::Unknown(format!(
            "a prompt has {with} tokens with one, only {more} more than without"
        ))),
        Some(more) => Ok(Sight::Seen(format!("one takes {more} tokens"))),
        // Caches leave tokens out of the count, so this is no proof.
        None => Ok(Sight::Unknown(format!(
            "the server counts {with} tokens with one and {without} without"
        ))),
    }
}

fn dropped(teacher: &dyn Teacher, how: &str) -> TeacherError {
    let model = &teacher.describe().identity.model;
    let message =
        format!("the server of `{model}` takes pictures and does not look at them: {how}");
    TeacherError::new(ErrorClass::Deterministic, message)
        .lacking()
        .advise(
            "it answers to text: leave pictures out of the configuration, or serve a model that sees them (vLLM; \
             llama-server with --mmproj)",
        )
}

/// One of two pictures that nobody takes for the other, as a data URI.
pub fn test_picture(second: bool) -> String {
    let picture = image::RgbImage::from_fn(SIDE, SIDE, |x, y| {
        let in_disc = (x.abs_diff(SIDE / 2)).pow(2) + (y.abs_diff(SIDE / 2)).pow(2) < 80 * 80;
        image::Rgb(match (second, in_disc, (x / 16 + y / 16) % 2) {
            (false, true, _) => [220, 30, 30],
            (false, false, _) => [255, 255, 255],
            (true, _, 0) => [0, 0, 0],
            (true, _, _) => [40, 60, 250],
        })
    });
    let mut file = std::io::Cursor::new(Vec::new());
    picture
        .write_to(&mut file, image::ImageFormat::Png)
        .expect("memory takes all that is written");
    Picture::new(file.into_inner(), "made for the test")
        .expect("a small PNG file is a picture")
        .data_uri()
}

#[cfg(test)]
mod tests;
