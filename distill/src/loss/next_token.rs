//! The task loss of generation: the tokens of the response, each predicted from all that stands before it.
//!
//! Shape suffixes: `b` batch rows, `s` sequence positions, `d` hidden width, `v` vocabulary, `r` response tokens of
//! the batch, all rows one after the other.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor};

use super::to_f32;

/// The hidden states that predict a token of the response. Only these go through the language-model head: the logits
/// of prompt and padding, most of a batch, are never computed.
///
/// # Shapes
/// - `hidden_bsd`: `[b, s, d]`
/// - `positions_r`: `[r]`, each `row * s + position`
/// - returns `[r, d]`
pub fn predicting_states(hidden_bsd: Tensor<3>, positions_r: Tensor<1, Int>) -> Tensor<2> {
    hidden_bsd.flatten::<2>(0, 1).select(0, positions_r)
}

/// Logarithm of the probability of each token, in f32.
///
/// # Shapes
/// - `logits_rv`: `[r, v]`
/// - `tokens_r`: `[r]`, each in `0..v`
/// - returns `[r]`
pub fn token_log_probabilities(logits_rv: Tensor<2>, tokens_r: Tensor<1, Int>) -> Tensor<1> {
    log_softmax(to_f32(logits_rv), 1)
        .gather(1, tokens_r.unsqueeze_dim(1))
        .squeeze_dim(1)
}

/// Cross-entropy of the response, `-Σᵣ wᵣ log softmax(logitsᵣ)[tokenᵣ]`.
///
/// With `w = 1/r` this is the mean over the response tokens of the batch, the value of PyTorch's `cross_entropy` over
/// the labels that are not masked. A batch that is computed in parts has other weights, see
/// [`HostResponses`](crate::data::HostResponses), so that its parts add up to that mean. A weight of zero leaves a token out.
///
/// # Shapes
/// - `logits_rv`: `[r, v]`
/// - `tokens_r`: `[r]`
/// - `weights_r`: `[r]`
/// - returns `[1]`
///
/// # Source
/// The student's task loss of generation tasks, arXiv 2603.10877.
pub fn next_token(
    logits_rv: Tensor<2>,
    tokens_r: Tensor<1, Int>,
    weights_r: Tensor<1>,
) -> Tensor<1> {
    (token_log_probabilities(logits_rv, tokens_r) * weights_r)
        .sum()
        .neg()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_near, device, matrix, values};
    use super::*;

    fn weights(values: &[f32]) -> Tensor<1> {
        Tensor::from_floats(values, &device())
    }

    fn tokens(values: &[i64]) -> Tensor<1, Int> {
        Tensor::from_ints(values, &device())
    }

    #[test]
    fn matches_the_closed_form() {
        let logits = matrix([[0.0, 3.0_f32.ln(), 0.0], [1000.0, 0.0, 0.0]]).require_grad();
        let loss = next_token(logits.clone(), tokens(&[1, 0]), weights(&[0.5, 0.5]));
        // Token 1: -ln(3/5); token 2: 0 although exp(1000) overflows.
        assert_near(&values(loss.clone()), &[(5.0_f32 / 3.0).ln() / 2.0]);
        let gradients = loss.backward();
        assert_near(
            &values(logits.grad(&gradients).unwrap()),
            &[0.1, -0.2, 0.1, 0.0, 0.0, 0.0],
        );
    }

    #[test]
    fn only_the_states_asked_for_are_predicted_from() {
        let hidden = Tensor::<3>::from_floats(
            [
                [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]],
                [[6.0, 7.0], [8.0, 9.0], [10.0, 11.0]],
            ],
            &device(),
        );
        assert_near(
            &values(predicting_states(hidden, tokens(&[1, 3, 4]))),
            &[2.0, 3.0, 6.0, 7.0, 8.0, 9.0],
        );
    }

    #[test]
    fn a_weight_of_zero_leaves_a_token_out() {
        let logits = matrix([[0.0, 1.0], [5.0, -2.0]]).require_grad();
        let loss = next_token(logits.clone(), tokens(&[0, 1]), weights(&[1.0, 0.0]));
        // ln(1 + e)
        assert_near(&values(loss.clone()), &[1.313_261_7]);
        let gradients = values(logits.grad(&loss.backward()).unwrap());
        assert_near(&gradients, &[-0.731_058_6, 0.731_058_6, 0.0, 0.0]);
    }
}
