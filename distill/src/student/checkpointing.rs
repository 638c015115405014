//! Gradients with one layer's activations in memory at a time (Chen et al., arXiv 1604.06174).
//!
//! The forward pass keeps the input of every layer and records nothing else. The backward pass goes through the layers
//! in reverse, computes each a second time with a graph and pushes the gradient of its output through it. Dropout draws
//! the same masks both times, because every part has random numbers of its own.
//!
//! Shape suffixes: `n` rows (batch times positions), `d` hidden width.

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Gradients, Tensor};

use super::backbone::with_trunk;
use super::trunk::Trunk;
use super::{Backbone, BackboneOutput, TokenBatch, weights};
use crate::device::Precision;

/// A part of a training step that draws its own dropout masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// What all layers share.
    Pass,
    /// Before the first layer.
    Embed,
    /// A layer.
    Layer(usize),
    /// After the last layer: the end of the backbone, heads and loss.
    End,
}

impl Segment {
    /// A number of its own.
    pub fn number(self) -> u64 {
        match self {
            Self::Pass => 0,
            Self::Embed => 1,
            Self::End => 2,
            Self::Layer(index) => 3 + index as u64,
        }
    }
}

/// The random numbers of a step's parts.
pub trait SegmentDraws {
    /// Computes a part that draws from the device's generator: the same numbers whenever it is the same part.
    fn drawing<T>(&self, segment: Segment, compute: impl FnOnce() -> T) -> T;
}

/// The gradients of a loss with respect to all parameters of `whole`, of which `backbone` is a part.
///
/// `end` turns the backbone's output into the loss, `[1]`, and whatever the caller wants to keep. Without dropout, the result is that of
/// [`Backbone::forward`] and a backward pass, up to the order in which gradients of a parameter that several parts use
/// are added.
pub fn gradients<M: Module, R>(
    whole: &M,
    backbone: &Backbone,
    batch: &TokenBatch,
    draws: &impl SegmentDraws,
    end: impl FnOnce(BackboneOutput) -> (Tensor<1>, R),
) -> (GradientsParams, R) {
    let precision = backbone.precision();
    with_trunk!(&backbone.trunk, trunk => {
        let segments = Segments { trunk, batch, precision, draws };
        segments.gradients(whole, end)
    })
}

/// A trunk whose parts are computed one by one.
struct Segments<'a, T, R> {
    trunk: &'a T,
    batch: &'a TokenBatch,
    precision: Precision,
    draws: &'a R,
}

impl<T: Trunk, R: SegmentDraws> Segments<'_, T, R> {
    fn gradients<M: Module, K>(
        &self,
        whole: &M,
        end: impl FnOnce(BackboneOutput) -> (Tensor<1>, K),
    ) -> (GradientsParams, K) {
        let mut sum = GradientsAccumulator::new();
        let mut add = |gradients: Gradients| {
            sum.accumulate(whole, GradientsParams::from_grads(gradients, whole));
        };
        let (inputs, last_nd) = self.layer_inputs();

        let leaf_nd = last_nd.require_grad();
        let pass = self.pass(self.trunk);
        let (loss, kept) = self.draws.drawing(Segment::End, || {
            end(self.trunk.finish(leaf_nd.clone(), self.batch, &pass))
        });
        let mut gradients = loss.backward();
        drop((loss, pass));
        let mut gradient_nd = taken(&leaf_nd, &mut gradients);
        add(gradients);

        for (index, input_nd) in inputs.into_iter().enumerate().rev() {
            let leaf_nd = input_nd.require_grad();
            let pass = self.pass(self.trunk);
            let output_nd = self.layer(self.trunk, index, leaf_nd.clone(), &pass);
            let mut gradients = pulled_back(output_nd, gradient_nd);
            gradient_nd = taken(&leaf_nd, &mut gradients);
            add(gradients);
        }

        let pass = self.pass(self.trunk);
        let embedded_nd = self.embed(self.trunk, &pass);
        // Frozen embeddings have no graph to go back through.
        if embedded_nd.is_tracked() {
            add(pulled_back(embedded_nd, gradient_nd));
        }
        (sum.grads(), kept)
    }

    /// The input of every layer and the output of the last, outside any graph. The trunk stays on its device without
    /// gradients of its own: dropout acts only on a device with autodiff.
    fn layer_inputs(&self) -> (Vec<Tensor<2>>, Tensor<2>) {
        // A clone shares what is not drawn yet, and whether it has a gradient.
        weights::initialise(self.trunk);
        let trunk = self.trunk.clone().no_grad();
        let pass = self.pass(&trunk);
        let mut hidden_nd = self.embed(&trunk, &pass);
        let mut inputs = Vec::with_capacity(trunk.num_layers());
        for index in 0..trunk.num_layers() {
            inputs.push(hidden_nd.clone());
            hidden_nd = self.layer(&trunk, index, hidden_nd, &pass);
        }
        (inputs, hidden_nd)
    }

    /// What the parts share: computed anew for each of them, so that it can be part of its graph.
    fn pass(&self, trunk: &T) -> T::Pass {
        let pass = || trunk.pass(self.batch, self.precision);
        self.draws.drawing(Segment::Pass, pass)
    }

    fn embed(&self, trunk: &T, pass: &T::Pass) -> Tensor<2> {
        let embed = || trunk.embed(self.batch, pass);
        self.draws.drawing(Segment::Embed, embed)
    }

    fn layer(&self, trunk: &T, index: usize, hidden_nd: Tensor<2>, pass: &T::Pass) -> Tensor<2> {
        let layer = || trunk.layer(index, hidden_nd, pass);
        self.draws.drawing(Segment::Layer(index), layer)
    }
}

/// The gradients of all that `output` was computed from, given its own: those of `Σ output · gradient`.
fn pulled_back(output_nd: Tensor<2>, gradient_nd: Tensor<2>) -> Gradients {
    (output_nd * Tensor::from_inner(gradient_nd))
        .sum()
        .backward()
}

fn taken(leaf_nd: &Tensor<2>, gradients: &mut Gradients) -> Tensor<2> {
    leaf_nd
        .grad_remove(gradients)
        .expect("every layer passes a gradient on to its input")
}
