"""What a command leaves out of what Lightning says."""

import logging

from lightning.fabric.accelerators.cuda import rank_zero_info

from cifar_lightning.cli import command


def test_advice_that_an_option_answers_is_left_out(caplog):
    command._silence_what_does_not_concern_the_user()
    with caplog.at_level(logging.INFO):
        rank_zero_info("You are using a CUDA device ('H100') that has Tensor Cores. To properly utilize them, ...")
        rank_zero_info("something else")
    assert caplog.messages == ["something else"]
