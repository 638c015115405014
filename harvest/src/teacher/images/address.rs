//! Pictures behind the addresses that a generator answers with.

use std::sync::Arc;

use futures::future::BoxFuture;
use schemas::{Provenance, SignalValue, TeacherIdentity};

use super::super::media::{Media, Picture};
use super::super::{
    Answers, BatchLimits, Description, ErrorClass, OpenContext, Paid, Reply, Request, Retry, Sent,
    Teacher, TeacherError, Usage,
};
use super::generator::IMAGE;
use super::only;
use crate::config::{CommonConfig, ServerConfig};

/// Fetches pictures from the server's own host and the configured ones, without any key. Nothing is paid for it, so no
/// budget counts it.
#[derive(Debug)]
pub(super) struct Addresses {
    fetch: Arc<dyn Teacher>,
}

impl Addresses {
    pub(super) fn open(
        server: &ServerConfig,
        context: &OpenContext<'_>,
    ) -> Result<Self, TeacherError> {
        let mut image_hosts = context.common.image_hosts.clone();
        image_hosts.push(server.url.host());
        let common = CommonConfig {
            image_hosts,
            ..context.common.clone()
        };
        let fetch = Fetch {
            description: Description {
                identity: TeacherIdentity {
                    kind: "address".into(),
                    model: server.model.clone(),
                    settings: serde_json::Value::Null,
                },
                offers: Vec::new(),
                batch: BatchLimits::SINGLE,
                max_in_flight: None,
            },
            media: Media::new(&OpenContext {
                common: &common,
                ..context.clone()
            })?,
        };
        let fetch = Retry::new(fetch, context.run.max_tries, context.stop.clone());
        Ok(Self {
            fetch: Arc::new(fetch.counted(Arc::clone(&context.watch.metrics))),
        })
    }

    /// The picture at `url` for the row of `request`.
    ///
    /// # Errors
    /// Deterministic where there is none or it may not be fetched; then [`is_gone`] tells the two apart.
    pub(super) async fn picture(
        &self,
        url: String,
        request: &Request,
        paid: &dyn Paid,
    ) -> Result<SignalValue, TeacherError> {
        let mut asked = Request::text(request.id, request.draw, "");
        asked.image = Some(url);
        let mut reply = only(self.fetch.as_ref(), &asked, paid).await?;
        Ok(reply
            .signals
            .remove(IMAGE)
            .expect("what is fetched is a picture"))
    }
}

/// Whether an address brings no picture any more, so that a new picture is what helps. Addresses end to be valid, often
/// after an hour.
pub(super) fn is_gone(error: &TeacherError) -> bool {
    error.class == ErrorClass::Deterministic && matches!(error.sent, Sent::Refused | Sent::Unusable)
}

/// One try. It is a teacher so that it is asked again like one.
#[derive(Debug)]
struct Fetch {
    description: Description,
    media: Media,
}

impl Fetch {
    async fn fetch(&self, url: &str) -> Result<Picture, TeacherError> {
        if url.starts_with("data:") {
            let picture = Picture::of_data_uri(url);
            return picture.map_err(|error| error.having(Sent::Unusable));
        }
        if url.starts_with("http://") || url.starts_with("https://") {
            let picture = self.media.read(url).await;
            return picture.map_err(|error| match error.sent {
                // The next picture lies there, too.
                Sent::Nothing => error.lacking(),
                _ => error,
            });
        }
        let problem = "the `url` of the picture is none of http, https and data";
        let advice = "have the server send the picture itself, often by `options = { response_format = \"b64_json\" }`";
        let error = TeacherError::new(ErrorClass::Deterministic, problem).advise(advice);
        Err(error.having(Sent::Nothing).lacking())
    }

    async fn ask(&self, requests: &[Request]) -> Result<Answers, TeacherError> {
        let request = requests.first().expect("a batch has a request");
        let url = request.image.as_deref().expect("an address is asked about");
        let picture = self.fetch(url).await?;
        let picture = (IMAGE.to_owned(), SignalValue::Image(picture.bytes));
        Ok(vec![Ok(Reply {
            signals: [picture].into(),
            provenance: Provenance::default(),
        })]
        .into())
    }
}

impl Teacher for Fetch {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn most(&self, _requests: &[Request]) -> Usage {
        Usage::default()
    }

    fn query<'a>(
        &'a self,
        requests: &'a [Request],
        _paid: &'a dyn Paid,
    ) -> BoxFuture<'a, Result<Answers, TeacherError>> {
        Box::pin(self.ask(requests))
    }
}
