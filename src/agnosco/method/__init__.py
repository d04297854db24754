"""The paper: Algorithm 1, its refinement (Eq. 2), the cycle, and M_score (Eq. 3-5)."""
