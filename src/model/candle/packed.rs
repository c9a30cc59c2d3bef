//! What the candle network does with rows that lie behind each other.

use candle_core::Tensor;

use super::attention::attention;
use super::forward::by_head;
use crate::error::Result;
use crate::model::packed::Packed;

impl Packed {
    /// Each row attends to itself.
    pub(super) fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let mixed = self
            .rows
            .iter()
            .map(|&(start, len)| {
                let part = |x: &Tensor| x.narrow(0, start, len);
                Ok(attention(&part(q)?, &by_head(&part(k)?)?, &by_head(&part(v)?)?)?)
            })
            .collect::<Result<Vec<Tensor>>>()?;
        match mixed.as_slice() {
            [one] => Ok(one.clone()),
            many => Ok(Tensor::cat(many, 0)?),
        }
    }

    /// Of hidden states `[tokens, …]` those that predict the targets, `[targets, …]`.
    pub(super) fn predicting(&self, hidden: &Tensor) -> Result<Tensor> {
        let index = Tensor::from_slice(&self.predicting, self.predicting.len(), hidden.device())?;
        Ok(hidden.index_select(&index, 0)?)
    }
}
