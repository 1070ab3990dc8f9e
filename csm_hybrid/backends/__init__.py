"""The model's parts on what runs them: this project's C++, llama.cpp, and moshi for comparison."""
